"""The verbs of ``python -m trainer``: arguments in, printed results out."""
