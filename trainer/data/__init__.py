"""Splits of captioned images, in Flickr8k's layout or in shards, and their arrays."""
