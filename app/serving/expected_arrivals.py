"""Expected arrivals: items so near that a batch had better leave a little later, with them in it.

Two kinds are expected: items that are being prepared, and the next items of callers who were just
answered, where callers have been coming back at once. Knows neither asyncio nor the clock.
"""

import math
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

MIN_BATCH_DELAY_S = 0.01
MAX_BATCH_DELAY_S = 0.05
_OFTEN = 0.7  # share of callers who come back so soon, from which on they are expected
_MEMORY = 0.8  # weight of the past in what is measured


class Expected(NamedTuple):
    """What is worth waiting for: so many items, until then on the clock of the caller."""

    items: int
    until_s: float


NONE_EXPECTED = Expected(0, -math.inf)


class _Answered(NamedTuple):
    """A batch that was answered, whose callers may come back until ``until_s``."""

    items: int
    until_s: float
    begun_before: int


class ExpectedArrivals:
    """Counts what is being prepared, and learns whether callers come back at once.

    Attributes:
        batch_delay_s: how long an arrival is worth waiting for: as long as an item takes, since
            that is what is saved, within ``MIN_BATCH_DELAY_S`` and ``MAX_BATCH_DELAY_S``.
    """

    def __init__(self) -> None:
        self.batch_delay_s = MIN_BATCH_DELAY_S
        self._preparing = 0
        self._begun = 0
        self._begun_if_all_return = 0
        self._answered_s = -math.inf
        self._unlearned: deque[_Answered] = deque()
        self._returning_share = 0.0

    @contextmanager
    def preparing(self, now_s: float) -> Iterator[None]:
        """Expect an item until the end of the context; it is submitted right then, or never."""
        self._learn(now_s)
        self._begun += 1
        self._preparing += 1
        try:
            yield
        finally:
            self._preparing -= 1

    def answered(self, items: int, now_s: float) -> None:
        """Take note of a batch that was answered: its callers may come back."""
        self._learn(now_s)
        still_out = 0
        if now_s < self._answered_s + self.batch_delay_s:
            still_out = max(0, self._begun_if_all_return - self._begun)
        self._answered_s = now_s
        self._begun_if_all_return = self._begun + still_out + items
        self._unlearned.append(_Answered(items, now_s + self.batch_delay_s, self._begun))

    def set_pace(self, seconds_per_item: float) -> None:
        """Take note of what an item takes at present."""
        self.batch_delay_s = max(MIN_BATCH_DELAY_S, min(seconds_per_item, MAX_BATCH_DELAY_S))

    def at(self, now_s: float, oldest_arrival_s: float) -> Expected:
        """Say what is worth waiting for now.

        Args:
            now_s: the time.
            oldest_arrival_s: when the first of the items that wait came.
        """
        self._learn(now_s)
        returning = 0
        if self._returning_share >= _OFTEN:
            returning = max(0, self._begun_if_all_return - self._begun)
        until_s = self._answered_s + self.batch_delay_s if returning else -math.inf
        if self._preparing:
            until_s = max(self._answered_s, oldest_arrival_s) + self.batch_delay_s
        if now_s >= until_s:
            return NONE_EXPECTED
        return Expected(self._preparing + returning, until_s)

    def _learn(self, now_s: float) -> None:
        """Learn what part of the callers came back, of batches whose time for it is over."""
        while self._unlearned and self._unlearned[0].until_s <= now_s:
            batch = self._unlearned.popleft()
            share = min(1.0, (self._begun - batch.begun_before) / batch.items)
            self._returning_share = _MEMORY * self._returning_share + (1 - _MEMORY) * share
