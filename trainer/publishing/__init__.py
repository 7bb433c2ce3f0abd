"""A trained checkpoint -> a directory of the model store, with golden caption and card."""
