"""The network and its beam search, defined in torch."""
