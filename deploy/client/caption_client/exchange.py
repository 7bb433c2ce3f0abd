"""One image's requests, whoever sends them: what is sent, what comes back, when to try again."""

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from caption_client import images
from caption_client.errors import CaptionError, DeadlinePassed, Refused, Unreachable
from caption_client.models import Caption, Image

PATH = "v1/captions"
_AGAIN = frozenset({429, 502, 503})
_FIRST_DELAY_S = 0.25
_MOST_DELAY_S = 10.0


@dataclass(frozen=True)
class Options:
    """What is asked for beside a caption, and how it is told.

    Attributes:
        n_best: candidates.
        words: each word with its log-probability.
        attention: where the network looked for each word; implies words.
        min_confidence: a caption below it is withheld.
        neutral: person and child in place of man, woman, boy and girl.
        style: ``sentence``, or ``alt`` for alternative texts.
        tags: what the image may show, in single words.
        model: the checkpoint, where several are served: ``name@version``, or ``name``.
    """

    n_best: int = 1
    words: bool = False
    attention: bool = False
    min_confidence: float | None = None
    neutral: bool = False
    style: str = "sentence"
    tags: bool = False
    model: str | None = None

    def query(self) -> dict[str, str]:
        """Give what differs from the service's defaults."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {
            name: str(value).lower()
            for name, value in values.items()
            if value != getattr(type(self), name)
        }


def client_options(url: str, key: str | None) -> dict[str, Any]:
    """Give what both clients of httpx are made with."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return {"base_url": url.rstrip("/") + "/", "headers": headers, "follow_redirects": True}


@dataclass
class Exchange:
    """The requests for one image: the first one, and those that try again.

    Attributes:
        data: The image.
        media_type: Of the image.
        options: What is asked for.
        deadline_s: Seconds for all of them together.
        retries: How many may follow the first.
    """

    data: bytes
    media_type: str
    options: Options
    deadline_s: float
    retries: int
    _began_s: float = field(default_factory=time.monotonic)
    _failures: int = 0

    @classmethod
    def of(cls, image: Image, options: Options, deadline_s: float, retries: int) -> "Exchange":
        """Read an image.

        Raises:
            OSError: The file cannot be read.
        """
        return cls(*images.read(image), options, deadline_s, retries)

    def request(self) -> dict[str, Any]:
        """Give the arguments of httpx's ``post``.

        Raises:
            DeadlinePassed: There is no time for another.
        """
        left_s = self._left_s()
        if left_s <= 0:
            raise DeadlinePassed(f"no answer within {self.deadline_s:g} s")
        headers = {"content-type": self.media_type, "x-request-timeout": f"{left_s:.3f}"}
        return {
            "url": PATH,
            "content": self.data,
            "params": self.options.query(),
            "headers": headers,
            "timeout": httpx.Timeout(left_s),
        }

    def caption(self, answer: httpx.Response) -> Caption:
        """Read an answer.

        Raises:
            CaptionError: It says no, or is none of a caption service.
        """
        problem = _members(answer)
        if answer.status_code != 200:
            raise Refused(answer.status_code, problem, _retry_after_s(answer))
        try:
            return Caption.of(problem)
        except (KeyError, TypeError, ValueError):
            raise Unreachable(f"{answer.url} is no caption service") from None

    def error(self, error: httpx.HTTPError) -> CaptionError:
        """Say what no answer means."""
        if isinstance(error, httpx.TimeoutException):
            return DeadlinePassed(f"no answer within {self.deadline_s:g} s")
        return Unreachable(str(error) or type(error).__name__)

    def delay_s(self, error: CaptionError) -> float:
        """Give the seconds to wait before the next try.

        Raises:
            CaptionError: The error itself: another try would not help, or come too late.
        """
        self._failures += 1
        may_help = isinstance(error, Unreachable) or (
            isinstance(error, Refused) and (error.status in _AGAIN or _lost_between(error))
        )
        told_s = error.retry_after_s if isinstance(error, Refused) else None
        delay_s = _backoff_s(self._failures) if told_s is None else told_s
        if not may_help or self._failures > self.retries or delay_s >= self._left_s():
            raise error
        return delay_s

    def _left_s(self) -> float:
        return self._began_s + self.deadline_s - time.monotonic()


def _lost_between(error: Refused) -> bool:
    """Say whether a proxy tells of a service that was lost; one that lives gives a code."""
    return error.status == 500 and not error.code


def _backoff_s(failures: int) -> float:
    """Wait longer each time, and not all at the same moment."""
    longest_s = min(_MOST_DELAY_S, _FIRST_DELAY_S * 2.0 ** (failures - 1))
    return longest_s * random.uniform(0.5, 1)


def _members(answer: httpx.Response) -> Mapping[str, Any]:
    try:
        members = answer.json()
    except ValueError:
        return {}
    return members if isinstance(members, dict) else {}


def _retry_after_s(answer: httpx.Response) -> float | None:
    """Read a number of seconds or a date.

    Reference: RFC 9110 section 10.2.3
    """
    told = answer.headers.get("retry-after", "")
    if told.isascii() and told.isdigit():
        return float(told)
    try:
        return max(0.0, (parsedate_to_datetime(told) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None
