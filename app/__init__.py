"""The caption service: post a photo, get a sentence."""
