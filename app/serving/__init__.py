"""One upload's way through the service, and the life of the service."""
