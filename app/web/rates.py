"""How many requests a second each key may make: a token bucket each.

Reference: draft-ietf-httpapi-ratelimit-headers-10, for the fields that tell callers.
"""

import math
from dataclasses import dataclass
from typing import Final

from app.web.problems import RateExceeded

_POLICY: Final = "key"


@dataclass
class _Bucket:
    tokens: float
    filled_s: float


class Rates:
    """The buckets. Each holds what comes in a second, one request at least.

    Args:
        per_s: Requests a second of one key; None for as many as it likes.
    """

    def __init__(self, per_s: float | None) -> None:
        self._per_s = per_s
        self._most = math.ceil(max(1.0, per_s or 1.0))
        self._buckets: dict[int, _Bucket] = {}

    def take(self, key: int | None, now_s: float) -> dict[str, str]:
        """Charge a key for a request.

        Args:
            key: Its place among ours; None where there are no keys, and so no limit.
            now_s: The moment, on any steady clock.

        Returns:
            The header fields that tell what is left; none where there is no limit.

        Raises:
            RateExceeded: It has made as many as it may; with the same fields.
        """
        if key is None or self._per_s is None:
            return {}
        bucket = self._buckets.setdefault(key, _Bucket(self._most, now_s))
        grown = bucket.tokens + (now_s - bucket.filled_s) * self._per_s
        bucket.tokens, bucket.filled_s = min(self._most, grown), now_s
        if bucket.tokens < 1:
            wait_s = math.ceil((1 - bucket.tokens) / self._per_s)
            raise RateExceeded(self._most, wait_s, self._fields(bucket))
        bucket.tokens -= 1
        return self._fields(bucket)

    def _fields(self, bucket: _Bucket) -> dict[str, str]:
        """Say how many requests are left, and in how many seconds there are all of them again."""
        per_s = self._per_s or math.inf
        full_s = math.ceil((self._most - bucket.tokens) / per_s)
        return {
            "ratelimit-policy": f'"{_POLICY}";q={self._most};w={math.ceil(self._most / per_s)}',
            "ratelimit": f'"{_POLICY}";r={int(bucket.tokens)};t={full_s}',
        }
