"""Captions against references: metrics, corpus scores, and the rules of the Keras tutorial."""
