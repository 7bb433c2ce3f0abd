"""What every engine does: batches of pixels -> beams."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from app.captioner.image.decode import Pixels
from app.captioner.search import BeamArrays, StillWaiting

Floats = npt.NDArray[np.float32]
Precision = Literal["float32", "bfloat16", "int8"]


class Stage(NamedTuple):
    """A part of the work on a batch.

    Attributes:
        name: ``decode``, ``encode`` or ``search``.
        began_s: on the monotonic clock.
        ended_s: on the monotonic clock.
    """

    name: str
    began_s: float
    ended_s: float


class EngineResult(NamedTuple):
    """What became of a batch.

    Attributes:
        images: those of the batch that have beams, in their order; nobody waited for the others.
        beams: of these images; None if there are none.
        stages: ``encode`` and ``search``.
    """

    images: list[int]
    beams: BeamArrays | None
    stages: tuple[Stage, ...]


class Engine(Protocol):
    """A network on a device. Safe to call from several threads."""

    @property
    def max_concurrent_batches(self) -> int:
        """How many calls of `run` may be under way side by side with profit."""

    @property
    def batches_cost_alike(self) -> bool:
        """Whether a large batch takes about as long as a small one, as on a GPU."""

    def run(self, images: Sequence[Pixels], still_waiting: StillWaiting) -> EngineResult:
        """Find the captions of one batch.

        Args:
            images: uint8 ``(S, S, 3)`` each, or ``(F, S, S, 3)``, the frames of a shot, which get
                one caption together; all of one shape.
            still_waiting: says whether somebody still waits for image b; asked before the search
                and after every step of it, on a GPU before the batch.

        Raises:
            OutOfMemory: the batch does not fit into the device; a smaller one may.
            DeviceFault: the device has failed for good.
        """

    def summaries(self, images: Sequence[Pixels]) -> Floats:
        """Give ``summary_BW`` of one batch, each image in one vector, and search no captions.

        Args:
            images: uint8 ``(S, S, 3)`` each.

        Raises:
            OutOfMemory: as of `run`.
            DeviceFault: as of `run`.
        """

    def warm_up(self, images: Sequence[Pixels]) -> None:
        """Run a batch once wherever it may run."""


def summaries_of(found: EngineResult) -> Floats:
    """Give the summaries of a batch that somebody waits for whole.

    Raises:
        ValueError: it has none.
    """
    if found.beams is None or found.beams.summary_BW is None:
        raise ValueError("these beams have no summary of their images")
    return found.beams.summary_BW
