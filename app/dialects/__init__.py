"""What programs written for other services ask, and the answers they can read."""
