"""The offline trainer: produces the checkpoints that the service loads."""
