"""What is between admission and answer: requests and bytes, in all and by key, and slow uploads.

A body is charged for what has arrived of it and a small grant, not for what it declares: bytes that
are announced and never sent would cost the sender nothing and the others their room.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from app.observability.metrics import Metrics
from app.serving.batching import Overloaded
from app.settings import Settings
from app.web.problems import TooManyRequests

GRANT_BYTES = 64 * 1024
"""What a body may have before it is charged for more: most photos arrive in a few such pieces."""
_GRACE_S = 0.25
_SLOW_BYTES_PER_S = 64 * 1024


@dataclass(eq=False)
class Entry:
    """A request that was let in.

    Attributes:
        key: Whose it is, None where there are no keys.
        declared_bytes: Of its body; None where it does not say.
        deadline_s: When its caller wants the answer no more, on the loop's clock; infinite where he
            did not say.
    """

    key: int | None
    declared_bytes: int | None
    deadline_s: float
    charged_bytes: int = 0
    arrived_bytes: int = 0
    began_s: float = 0.0
    made_room: bool = False
    ready: bool = False
    reading: asyncio.Timeout | None = field(default=None, repr=False)

    def is_late(self, now_s: float) -> bool:
        """Say whether the caller wants no answer any more."""
        return now_s >= self.deadline_s


class Inflight:
    """Counts what is under way and keeps it within the limits.

    Args:
        settings: The limits.
        retry_after_s: Estimates when there will be room.
        metrics: Told what is in flight.
    """

    def __init__(
        self, settings: Settings, *, retry_after_s: Callable[[], int], metrics: Metrics
    ) -> None:
        self._settings = settings
        self._retry_after_s = retry_after_s
        self._metrics = metrics
        self._requests = 0
        self._bytes = 0
        self._requests_of: Counter[int | None] = Counter()
        self._bytes_of: Counter[int | None] = Counter()
        self._ready_of: Counter[int | None] = Counter()  # those whose body is there
        self._uploading: dict[Entry, None] = {}

    def ahead_of(self, key: int | None) -> int:
        """Count the requests that are served before the next one of a key: keys take turns.

        A body that has not arrived is no work, and may never be.
        """
        own = self._ready_of[key]
        others = [held for each, held in self._ready_of.items() if each != key]
        return own + sum(min(held, own + 1) for held in others)

    @contextmanager
    def entering(self, entry: Entry) -> Iterator[None]:
        """Let a request in, for as long as it is under way.

        Raises:
            Overloaded: There is no room for it, or for as much as it declares.
            TooManyRequests: Its key has its share already.
        """
        self._check(entry)
        self._count(1, entry)
        self._charge(entry, min(GRANT_BYTES, self._expected_bytes(entry)))
        try:
            yield
        finally:
            self._charge(entry, 0)
            self._count(-1, entry)
            self._ready_of[entry.key] -= entry.ready

    @contextmanager
    def uploading(self, entry: Entry) -> Iterator[asyncio.Timeout]:
        """Give the time limit for reading a body, which moves on with what arrives.

        It ends sooner where a place is needed.
        """
        entry.began_s = asyncio.get_running_loop().time()
        entry.reading = asyncio.timeout_at(self._patience_s(entry))
        self._uploading[entry] = None
        try:
            yield entry.reading
            entry.ready = True
            self._ready_of[entry.key] += 1
        finally:
            self._uploading.pop(entry, None)

    def _patience_s(self, entry: Entry) -> float:
        """Give the moment until which a body may go on, on the loop's clock.

        It has some seconds in all and one more for each so many bytes, as Apache's MinRate gives
        them; and a few until it goes on, however fast it was.
        """
        settings = self._settings
        earned_s = entry.arrived_bytes / settings.body_min_bytes_per_s
        silent_s = asyncio.get_running_loop().time() + settings.body_idle_s
        steady_s = entry.began_s + settings.body_timeout_s + earned_s
        return min(silent_s, steady_s, entry.deadline_s)

    def charge_more(self, entry: Entry, more: int) -> None:
        """Charge a request for bytes that it holds beside its body, or for fewer, until its end.

        Raises:
            Overloaded: There is no room for so much.
            TooManyRequests: Its key has its share already.
        """
        if more > 0:
            self._check_bytes(entry.key, more)
        self._charge(entry, entry.charged_bytes + more)

    def arrived(self, entry: Entry, arrived_bytes: int) -> None:
        """Charge a body for what has arrived of it, and give it time for more.

        Raises:
            Overloaded: There is no room for so much.
            TooManyRequests: Its key has its share already.
        """
        grew = arrived_bytes > entry.arrived_bytes
        entry.arrived_bytes = arrived_bytes
        more = arrived_bytes - entry.charged_bytes
        if more > 0:
            self._check_bytes(entry.key, more)
            self._charge(entry, arrived_bytes)
        if grew and entry.reading is not None and not self._is_ending(entry):
            entry.reading.reschedule(self._patience_s(entry))

    @staticmethod
    def _is_ending(entry: Entry) -> bool:
        return entry.made_room or entry.reading is None or entry.reading.expired()

    def _check(self, entry: Entry) -> None:
        limit = self._settings.max_inflight_per_key
        if entry.key is not None and self._requests_of[entry.key] >= limit:
            raise TooManyRequests(limit, self._retry_after_s())
        self._check_bytes(entry.key, self._expected_bytes(entry))
        # Last: nobody is ended for who does not come in all the same.
        if self._requests >= self._settings.max_inflight_requests and not self._make_room():
            raise Overloaded(self._retry_after_s())

    def _check_bytes(self, key: int | None, more: int) -> None:
        if self._bytes + more > self._settings.max_inflight_bytes:
            raise Overloaded(self._retry_after_s())
        share = self._settings.max_inflight_bytes_per_key
        if key is not None and self._bytes_of[key] + more > share:
            raise TooManyRequests(share, self._retry_after_s())

    def _expected_bytes(self, entry: Entry) -> int:
        if entry.declared_bytes is None:
            return min(GRANT_BYTES, self._settings.max_upload_bytes)
        return entry.declared_bytes

    def _make_room(self) -> bool:
        """End the slowest upload, if it is one that waits for its sender."""
        slowest = min(self._uploading, key=_bytes_per_s, default=None)
        if slowest is None or slowest.reading is None or _bytes_per_s(slowest) > _SLOW_BYTES_PER_S:
            return False
        del self._uploading[slowest]
        slowest.made_room = True
        if not slowest.reading.expired():  # else it is ending by itself
            slowest.reading.reschedule(asyncio.get_running_loop().time())
        return True

    def _count(self, sign: int, entry: Entry) -> None:
        self._requests += sign
        self._requests_of[entry.key] += sign
        self._metrics.inflight_requests.set(self._requests)

    def _charge(self, entry: Entry, nbytes: int) -> None:
        more = nbytes - entry.charged_bytes
        entry.charged_bytes = nbytes
        self._bytes += more
        self._bytes_of[entry.key] += more
        self._metrics.inflight_bytes.set(self._bytes)


def _bytes_per_s(entry: Entry) -> float:
    """Give how fast a body has come; at the very beginning nobody is slow."""
    age_s = asyncio.get_running_loop().time() - entry.began_s
    return float("inf") if age_s < _GRACE_S else entry.arrived_bytes / age_s
