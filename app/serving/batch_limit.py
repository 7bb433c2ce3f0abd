"""How many items a batch may have, given what the device was seen to hold."""

_BATCHES_PER_STEP = 100


class BatchSizeLimit:
    """Halves when a batch does not fit and comes back one by one, a hundred batches each.

    Args:
        most: The most there may ever be.
    """

    def __init__(self, most: int) -> None:
        self.now = most
        self._most = most
        self._good = 0

    def halve(self, tried: int) -> None:
        """Take note that ``tried`` items did not fit."""
        self.now = max(1, min(self.now, tried // 2))
        self._good = 0

    def held(self) -> None:
        """Take note of a batch that did fit."""
        self._good += 1
        if self._good >= _BATCHES_PER_STEP:
            self.now, self._good = min(self._most, self.now + 1), 0
