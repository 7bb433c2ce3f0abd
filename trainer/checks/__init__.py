"""Everything that is wrong with a data directory, and what to do."""
