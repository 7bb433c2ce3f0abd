"""Uploaded bytes -> the square of pixels that the network sees. Knows Pillow and numpy alone."""
