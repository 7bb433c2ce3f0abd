"""Who is calling: the API keys."""

import hashlib
import hmac
from collections.abc import Sequence

from pydantic import SecretStr
from starlette.datastructures import Headers

from app.web.problems import Unauthorized


class Keys:
    """The API keys. Without any, everybody may enter."""

    def __init__(self, keys: Sequence[SecretStr]) -> None:
        self._digests = [_digest(key.get_secret_value().encode()) for key in keys]

    def name(self, key: int) -> str:
        """Name a key for the log: the beginning of its SHA-256, which tells nothing of it."""
        return self._digests[key].hex()[:12]

    def check(self, headers: Headers) -> int | None:
        """Compare in constant time, whatever the length and whichever key fits.

        Returns:
            The place of the key among ours; None where none is needed.

        Raises:
            Unauthorized: No key was given, or not one of ours.
        """
        if not self._digests:
            return None
        given = _digest(_given_key(headers).encode("latin-1"))
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        if not any(matches):
            raise Unauthorized
        return matches.index(True)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _given_key(headers: Headers) -> str:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
