"""The frames of a clip -> its shots, as the frames come, in memory that does not grow.

S side of the network's square, W width of a frame's summary
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from app.captioner.image.decode import Pixels
from app.clips.sampling import Frame

Floats = npt.NDArray[np.float32]

DEFAULT_THRESHOLD: Final = 0.22
"""The distance, 0 to 1, from which on two frames are of two shots. `benchmarks/shots.py` chose."""
LEAST_SHOT_S: Final = 1.0
"""A shot lasts so long, or it belongs to the next."""
_LEVELS: Final = 4  # of each colour in a histogram
_LOW: Final = 0.4  # of the threshold: from here on something changes, perhaps slowly
_LONGEST_CHANGE_S: Final = 3.0  # a fade is over by then; a camera that moves goes on
_SHARE_OF_COLOURS: Final = 0.4
_MOST_KEPT: Final = 16
_FEW: Final = 3


class Look(NamedTuple):
    """What a frame is compared by.

    Attributes:
        summary_W: what the encoder made of it.
        histogram: share of its pixels by colour.
    """

    summary_W: Floats
    histogram: Floats


class Shot(NamedTuple):
    """A run of frames that show one thing.

    Attributes:
        start_s: when it begins.
        end_s: when the next one does, or the clip ends.
        frames: some of its frames, in order, evenly spread; at least one.
    """

    start_s: float
    end_s: float
    frames: tuple[Frame, ...]

    @property
    def keyframe(self) -> Frame:
        """Give the frame nearest to its middle."""
        middle_s = (self.start_s + self.end_s) / 2
        return min(self.frames, key=lambda frame: abs(frame.time_s - middle_s))

    @property
    def looked_at(self) -> tuple[Frame, ...]:
        """Give the frames that say what it shows: not its ends, which may show its neighbours."""
        return self.frames[1:-1] if len(self.frames) > _FEW else self.frames


def histogram(pixels_SSC: Pixels) -> Floats:
    """Give the share of pixels of each of 64 colours."""
    levels_N3 = pixels_SSC.reshape(-1, 3) // (256 // _LEVELS)
    colours_N = levels_N3 @ np.array([_LEVELS**2, _LEVELS, 1], np.uint8)
    counts = np.bincount(colours_N, minlength=_LEVELS**3)
    return (counts / len(colours_N)).astype(np.float32)


def distance(one: Look, other: Look) -> float:
    """Say how far apart two frames are, 0 (the same) to 1.

    It is the angle between their summaries, and what their histograms do not share.
    """
    lengths = np.linalg.norm(one.summary_W) * np.linalg.norm(other.summary_W)
    alike = float(one.summary_W @ other.summary_W / lengths) if lengths else 1.0
    angle = min(1.0, max(0.0, 1 - alike))
    colours = float(np.abs(one.histogram - other.histogram).sum()) / 2
    return (1 - _SHARE_OF_COLOURS) * angle + _SHARE_OF_COLOURS * colours


@dataclass
class _Change:
    """Frames that differ one from the next, perhaps from one shot into another.

    Attributes:
        before: the last frame before it.
        began_s: when that was shown.
        largest: distance between two frames that follow each other.
        largest_s: when the second of these is shown.
    """

    before: Look
    began_s: float
    largest: float = 0.0
    largest_s: float = 0.0

    def goes_on(self, step: float, time_s: float) -> None:
        if step > self.largest:
            self.largest, self.largest_s = step, time_s


class ShotFinder:
    """Finds shots in frames that come one by one.

    Two thresholds: from the low one on, the distance between two frames says that something
    changes. Once nothing does any more, it was a cut if two frames of it are above the high one
    apart, and a fade if the frames before it and after it are. A camera that moves changes what is
    seen for longer than a fade does.

    Args:
        threshold: the high one.

    Reference: Zhang, Kankanhalli and Smoliar 1993, "Automatic partitioning of full-motion video":
    twin comparison
    """

    def __init__(self, threshold: float = DEFAULT_THRESHOLD) -> None:
        self._high = threshold
        self._low = _LOW * threshold
        self._last: tuple[Frame, Look] | None = None
        self._change: _Change | None = None
        self._start_s = 0.0
        self._next_s: float | None = None  # when the next shot begins, if it lasts
        self._kept = _Kept()

    def add(self, frame: Frame, look: Look) -> Shot | None:
        """Take the next frame, and give the shot that is known to have ended, if one is."""
        if self._last is not None:
            self._note(self._boundary(frame.time_s, look, *self._last))
        self._last = frame, look
        found = self._ended_before(frame.time_s)
        self._kept.add(frame)
        return found

    def end(self, end_s: float) -> list[Shot]:
        """Give the last shots: one or two, or none of a clip without frames."""
        if self._last is None:
            return []
        frame, look = self._last
        self._note(self._closed(look, frame.time_s))
        before = self._ended_before(end_s)
        if not self._kept.frames:
            self._kept.add(frame)
        last = self._ended(max(end_s, self._start_s))
        return [last] if before is None else [before, last]

    def _note(self, at_s: float | None) -> None:
        """Take note that another shot begins, unless the one before is too short for that."""
        if at_s is not None and self._next_s is None and at_s - self._start_s >= LEAST_SHOT_S:
            self._next_s = at_s

    def _ended_before(self, time_s: float) -> Shot | None:
        """Give the shot that ended, once the next one has gone on for long enough."""
        next_s = self._next_s
        if next_s is None or time_s - next_s < LEAST_SHOT_S:
            return None
        self._next_s = None
        return self._ended(next_s)

    def _boundary(self, time_s: float, look: Look, last: Frame, last_look: Look) -> float | None:
        """Say when one shot became another, if that is known now."""
        step = distance(last_look, look)
        if self._change is None and step < self._low:
            return None
        at_s = None
        change = self._change or _Change(last_look, last.time_s)
        if self._is_another(change, step, time_s):
            at_s = change.largest_s
            change = _Change(last_look, last.time_s)
        change.goes_on(step, time_s)
        self._change = change
        if step < self._low or time_s - change.began_s > _LONGEST_CHANGE_S:
            return self._closed(look, time_s)
        return at_s

    def _is_another(self, change: _Change, step: float, time_s: float) -> bool:
        """Say whether a cut comes so long after another one that a shot is between them."""
        both = min(step, change.largest) >= self._high
        return both and time_s - change.largest_s >= LEAST_SHOT_S

    def _closed(self, look: Look, time_s: float) -> float | None:
        """End a change, and say when it brought another shot, if it did."""
        change, self._change = self._change, None
        if change is None:
            return None
        apart = distance(change.before, look)
        if change.largest >= self._high and apart >= self._low:  # else it was a flash
            return change.largest_s
        return (change.began_s + time_s) / 2 if apart >= self._high else None

    def _ended(self, end_s: float) -> Shot:
        within, after = self._kept.split(end_s)
        shot = Shot(self._start_s, end_s, tuple(within))
        self._start_s, self._kept = end_s, after
        return shot


@dataclass
class _Kept:
    """Some frames of a shot, evenly spread: at twice as many as may be kept, every other goes."""

    frames: list[Frame] = field(default_factory=list)
    _every: int = 1
    _seen: int = 0

    def add(self, frame: Frame) -> None:
        if self._seen % self._every == 0:
            self.frames.append(frame)
        self._seen += 1
        if len(self.frames) > _MOST_KEPT:
            self.frames = self.frames[::2]
            self._every *= 2

    def split(self, at_s: float) -> "tuple[Sequence[Frame], _Kept]":
        """Give the frames before a time, and what begins after it."""
        within = [each for each in self.frames if each.time_s < at_s] or self.frames[:1]
        after = _Kept()
        for each in self.frames:
            if each.time_s >= at_s:
                after.add(each)
        return within, after
