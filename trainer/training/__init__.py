"""A recipe and data -> a run directory with its best checkpoint."""
