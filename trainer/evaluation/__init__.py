"""A checkpoint and a split -> captions, scores and a page to look at."""
