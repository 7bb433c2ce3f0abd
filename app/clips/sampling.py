"""Which frames of a clip are looked at, and what of them is given on.

S side of the network's square
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, Self

from app.captioner.errors import ClipTooLong, UndecodableImage
from app.captioner.image.decode import Pixels
from app.captioner.image.fit import Fit, Resampling

if TYPE_CHECKING:
    from app.captioner.manifest import ImageGeometry

DEFAULT_FPS = 2.0
_NEAR_S = 1e-4  # clocks of containers round
_INCOMPLETE: Final = "The clip has more frames than are looked at: its end is not described."
_DAMAGED: Final = "Some of the clip could not be decoded, and is not described."


class Limits(Protocol):
    """What a machine may do for a clip; settings have it."""

    @property
    def max_clip_s(self) -> float:
        """Seconds that a clip may last."""

    @property
    def max_pixels(self) -> int:
        """Of a frame."""

    @property
    def max_clip_pixels_per_s(self) -> int:
        """Width times height times frames in a second."""


@dataclass(frozen=True)
class Sampling:
    """How a clip is read.

    Attributes:
        fps: frames looked at in a second, at most.
        max_frames: in all. Of a clip that says how long it is, they are spread over all of it.
        max_s: that the clip may last.
        max_pixels: of one frame.
        max_pixels_per_s: width times height times frames in a second, as the container says.
        size_px: S.
        fit: how a frame becomes the square.
        resampling: the filter for that.
    """

    fps: float
    max_frames: int
    max_s: float
    max_pixels: int
    max_pixels_per_s: int
    size_px: int
    fit: Fit
    resampling: Resampling

    @classmethod
    def within(cls, limits: Limits, image: "ImageGeometry", *, fps: float, max_frames: int) -> Self:
        """Read a clip for a network that sees such images."""
        return cls(
            fps=fps,
            max_frames=max_frames,
            max_s=limits.max_clip_s,
            max_pixels=limits.max_pixels,
            max_pixels_per_s=limits.max_clip_pixels_per_s,
            size_px=image.size_px,
            fit=image.fit,
            resampling=image.resampling,
        )


class Frame(NamedTuple):
    """A frame that is looked at.

    Attributes:
        time_s: when it is shown, from the beginning of the clip.
        pixels: uint8 ``(S, S, 3)``, upright.
    """

    time_s: float
    pixels: Pixels


class End(NamedTuple):
    """What is known once a clip is read.

    Attributes:
        duration_s: how long it lasts; of one that is not complete, up to where it was read.
        complete: False where it has more frames than may be looked at.
        whole: False where some of it could not be decoded.
        warning: what else is to know, where there is something.
    """

    duration_s: float
    complete: bool = True
    whole: bool = True
    warning: str | None = None

    @property
    def warnings(self) -> str | None:
        """Tell a person all of it; None where there is nothing."""
        said = (self.warning, not self.complete and _INCOMPLETE, not self.whole and _DAMAGED)
        return " ".join(each for each in said if each) or None


class Sampler:
    """Says of each frame of a clip, in order, whether it is looked at.

    Args:
        how: the limits.
        duration_s: as the container says; None where it does not.

    Raises:
        ClipTooLong: it says more than the clip may last.
    """

    def __init__(self, how: Sampling, duration_s: float | None) -> None:
        self._how = how
        check_duration(duration_s or 0.0, how)
        self._step_s = max(1 / how.fps, (duration_s or 0.0) / how.max_frames)
        self._next_s = 0.0
        self.taken = 0

    @property
    def is_full(self) -> bool:
        """Whether as many frames were taken as may be."""
        return self.taken >= self._how.max_frames

    def wants(self, time_s: float) -> bool:
        """Say whether the frame at this time is the next one, or comes after it.

        Raises:
            ClipTooLong: the clip goes on for longer than it may.
        """
        check_duration(time_s, self._how)
        return time_s + _NEAR_S >= self._next_s

    def took(self, time_s: float) -> None:
        """Note that it was taken; the next one is on the grid of times after it."""
        self.taken += 1
        self._next_s = (math.floor((time_s + _NEAR_S) / self._step_s) + 1) * self._step_s


def check_duration(duration_s: float, how: Sampling) -> None:
    """Refuse a clip that lasts too long.

    Raises:
        ClipTooLong: it does.
    """
    if duration_s > how.max_s:
        limit = math.floor(how.max_s)
        raise ClipTooLong(f"the clip is longer than {limit} s: send a part of it", limit)


def damaged_clip() -> UndecodableImage:
    """Give what is raised of a clip that no frame can be read of."""
    return UndecodableImage("the clip is damaged or incomplete")
