"""Our service with an engine that takes no time: what is left is HTTP, decoding and words.

The checkpoint is loaded and captions one image for real; every later image is given the beams of
that one. As on a GPU, two batches run side by side and all uploads are decoded in processes.
"""

import os
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from app import cli, main
from app.captioner.engines.engine import Engine, EngineResult, Stage
from app.captioner.image.decode import Pixels
from app.captioner.pipeline import Captioner
from app.captioner.search import BeamArrays, StillWaiting
from app.loading import CheckpointStore


class InstantEngine:
    """Repeats what an engine found once."""

    max_concurrent_batches = 2
    batches_cost_alike = True

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._found: BeamArrays | None = None

    def run(self, images: Sequence[Pixels], still_waiting: StillWaiting) -> EngineResult:
        """Find the captions of the first image; repeat them."""
        began_s = time.monotonic()
        if self._found is None:
            self._found = self._engine.run(images[:1], still_waiting).beams
        if self._found is None:
            return EngineResult([], None, ())
        beams = BeamArrays(*(_repeated(array, len(images)) for array in self._found))
        now_s = time.monotonic()
        stages = (Stage("encode", began_s, now_s), Stage("search", now_s, now_s))
        return EngineResult(list(range(len(images))), beams, stages)

    def warm_up(self, images: Sequence[Pixels]) -> None:
        """Nothing is slower at first."""


def _repeated(array: np.ndarray | None, times: int) -> np.ndarray | None:  # type: ignore[type-arg]
    return None if array is None else np.repeat(array, times, axis=0)


class InstantStore(CheckpointStore):
    """The checkpoint of the settings, whose engine is not asked twice."""

    def load(self, directory: Path, *, beside: bool = False) -> Captioner:
        """Load it, and put the instant engine in the place of the real one."""
        captioner = super().load(directory, beside=beside)
        captioner.check_golden()
        captioner.engine = InstantEngine(captioner.engine)
        captioner.check_golden()  # the engine keeps what the golden image says
        return captioner


def share_the_port() -> None:
    """Let several services listen on one port; the kernel gives each its connections."""
    bind = socket.socket.bind

    def shared(self: socket.socket, address: object) -> None:
        self.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bind(self, address)  # type: ignore[arg-type]

    socket.socket.bind = shared  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    main.CheckpointStore = InstantStore  # type: ignore[misc]
    if os.environ.get("BENCH_SHARED_PORT"):
        share_the_port()
    sys.exit(cli.main(["serve"]))
