"""One file's requests, whoever sends them: what is sent, what comes back, when to try again."""

import json
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, ClassVar, Literal, TypeVar

import httpx

from caption_client import images
from caption_client.errors import CaptionError, DeadlinePassed, Refused, Unreachable
from caption_client.models import Caption, Clip, File, Shot

TrackFormat = Literal["vtt", "srt"]
Answer = TypeVar("Answer")

CLIP_DEADLINE_S = 330.0
"""What the service gives a clip unless set otherwise, 300 s, and time for the clip to get there."""
JSON, LINES = "application/json", "application/x-ndjson"
_TRACKS: Mapping[str, str] = {"vtt": "text/vtt", "srt": "application/x-subrip"}
_AGAIN = frozenset({429, 502, 503})
_FIRST_DELAY_S = 0.25
_MOST_DELAY_S = 10.0
_MOST_CONNECT_S = 30.0


@dataclass(frozen=True)
class _Asked:
    """What is asked for; the subclass says of what."""

    path: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]]
    other_kind: ClassVar[str]

    def query(self) -> dict[str, str]:
        """Give what differs from the service's defaults."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {
            name: str(value).lower() if isinstance(value, bool) else str(value)
            for name, value in values.items()
            if value != getattr(type(self), name)
        }


@dataclass(frozen=True)
class Options(_Asked):
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

    path = "v1/captions"
    kinds = ("image/",)
    other_kind = "image/jpeg"

    n_best: int = 1
    words: bool = False
    attention: bool = False
    min_confidence: float | None = None
    neutral: bool = False
    style: str = "sentence"
    tags: bool = False
    model: str | None = None


@dataclass(frozen=True)
class ClipOptions(_Asked):
    """How a clip is looked at, and how its shots are told.

    Attributes:
        fps: frames looked at in a second, at most 30.
        max_frames: frames looked at in all; None for as many as the service allows.
        scene_threshold: 0..1, how different the frames of two shots are; lower finds more shots.
        n_best: candidates of each shot.
        min_confidence: a caption below it is withheld.
        neutral: person and child in place of man, woman, boy and girl.
        style: ``sentence``, or ``alt`` for alternative texts.
        model: the checkpoint, where several are served: ``name@version``, or ``name``.
    """

    path = "v1/clips"
    kinds = ("image/", "video/")
    other_kind = "application/octet-stream"

    fps: float = 2.0
    max_frames: int | None = None
    scene_threshold: float = 0.22
    n_best: int = 1
    min_confidence: float | None = None
    neutral: bool = False
    style: str = "sentence"
    model: str | None = None


def track_type(track_format: str) -> str:
    """Give the media type of a track.

    Raises:
        ValueError: There is no such format.
    """
    if track_format not in _TRACKS:
        raise ValueError(f"expected one of {', '.join(_TRACKS)} as format, got {track_format!r}")
    return _TRACKS[track_format]


def client_options(url: str, key: str | None) -> dict[str, Any]:
    """Give what both clients of httpx are made with."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return {"base_url": url.rstrip("/") + "/", "headers": headers, "follow_redirects": True}


@dataclass
class Exchange:
    """The requests for one image or clip: the first one, and those that try again.

    Attributes:
        data: The file.
        media_type: Of the file.
        options: What is asked for.
        deadline_s: Seconds for all of them together.
        retries: How many may follow the first.
        accept: The media type of the answer.
        has_ended: Whether the last line of an answer in lines has come.
    """

    data: bytes
    media_type: str
    options: _Asked
    deadline_s: float
    retries: int
    accept: str = JSON
    has_ended: bool = field(default=False, init=False)
    _began_s: float = field(default_factory=time.monotonic)
    _failures: int = 0
    _has_lines: bool = False

    @classmethod
    def of(
        cls, file: File, options: _Asked, deadline_s: float, retries: int, accept: str = JSON
    ) -> "Exchange":
        """Read a file.

        Raises:
            OSError: The file cannot be read.
        """
        data, media_type = images.read(file, options.kinds, options.other_kind)
        return cls(data, media_type, options, deadline_s, retries, accept)

    def request(self) -> dict[str, Any]:
        """Give the arguments of httpx's ``post``, or of its ``stream`` beside the method.

        Raises:
            DeadlinePassed: There is no time for another.
        """
        left_s = self._checked_left_s()
        headers = {
            "accept": self.accept,
            "content-type": self.media_type,
            "x-request-timeout": f"{left_s:.3f}",
        }
        return {
            "url": self.options.path,
            "content": self.data,
            "params": self.options.query(),
            "headers": headers,
            "timeout": httpx.Timeout(left_s, connect=min(left_s, _MOST_CONNECT_S)),
        }

    # Whole answers

    def caption(self, answer: httpx.Response) -> Caption:
        """Read an answer to an image.

        Raises:
            CaptionError: It says no, or is none of a caption service.
        """
        return self._read(answer, Caption.of)

    def clip(self, answer: httpx.Response) -> Clip:
        """Read an answer to a clip.

        Raises:
            CaptionError: It says no, or is none of a caption service.
        """
        return self._read(answer, Clip.of)

    def track(self, answer: httpx.Response) -> str:
        """Read a track.

        Raises:
            CaptionError: It says no, or is none of a caption service.
        """
        self.check(answer)
        return answer.text

    def _read(self, answer: httpx.Response, of: Callable[[Mapping[str, Any]], Answer]) -> Answer:
        _check_status(answer)
        try:
            return of(_members(answer))
        except (KeyError, TypeError, ValueError):
            raise _stranger(answer) from None

    def check(self, answer: httpx.Response) -> None:
        """Check what stands before an answer that is no JSON; one that says no has been read.

        Raises:
            CaptionError: It says no, or is none of a caption service.
        """
        _check_status(answer)
        if answer.headers.get("content-type", "").partition(";")[0].strip() != self.accept:
            raise _stranger(answer)

    # Answers in lines

    def shot(self, line: str) -> Shot | None:
        """Read a line of a clip; the last one is no shot.

        Raises:
            Refused: The service tells what went wrong.
            DeadlinePassed: The line comes too late.
            Unreachable: It is none of a caption service, or was cut.
        """
        self._has_lines = True
        self._checked_left_s()
        try:
            told = json.loads(line)
            problem = told.get("problem")
            if problem is None and "start_s" in told:
                return Shot.of(told)
            status = problem["status"] if problem else 200
        except (AttributeError, KeyError, TypeError, ValueError):
            raise Unreachable("the answer has a line that was cut, or is no shot") from None
        if problem:
            raise Refused(status, problem, problem.get("retry_after"))
        self.has_ended = "duration_s" in told
        return None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the time in which the caller has a shot."""
        began_s = time.monotonic()
        yield
        self._began_s += time.monotonic() - began_s

    def check_ended(self) -> None:
        """Check that no line is missing.

        Raises:
            Unreachable: The last one has not come.
        """
        if not self.has_ended:
            raise Unreachable("the answer broke off before its last line")

    # What else there is

    def error(self, error: httpx.HTTPError) -> CaptionError:
        """Say what no answer means."""
        if isinstance(error, httpx.ConnectTimeout) and self._left_s() > 0:
            return Unreachable(f"no connection within {_MOST_CONNECT_S:g} s")
        if isinstance(error, httpx.TimeoutException):
            return self._too_late()
        return Unreachable(str(error) or type(error).__name__)

    def delay_s(self, error: CaptionError) -> float:
        """Give the seconds to wait before the next try.

        Raises:
            CaptionError: The error itself: another try would not help, come too late, or tell
                again what was told.
        """
        self._failures += 1
        may_help = isinstance(error, Unreachable) or (
            isinstance(error, Refused) and (error.status in _AGAIN or _lost_between(error))
        )
        told_s = error.retry_after_s if isinstance(error, Refused) else None
        delay_s = _backoff_s(self._failures) if told_s is None else told_s
        is_last = self._has_lines or self._failures > self.retries
        if not may_help or is_last or delay_s >= self._left_s():
            raise error
        return delay_s

    def _left_s(self) -> float:
        return self._began_s + self.deadline_s - time.monotonic()

    def _checked_left_s(self) -> float:
        left_s = self._left_s()
        if left_s <= 0:
            raise self._too_late()
        return left_s

    def _too_late(self) -> DeadlinePassed:
        return DeadlinePassed(f"no answer within {self.deadline_s:g} s")


def _check_status(answer: httpx.Response) -> None:
    if answer.status_code != 200:
        raise Refused(answer.status_code, _members(answer), _retry_after_s(answer))


def _stranger(answer: httpx.Response) -> Unreachable:
    return Unreachable(f"{answer.url} is no caption service")


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
