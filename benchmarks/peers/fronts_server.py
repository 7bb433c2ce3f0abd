"""A prototype: front processes on one socket around one engine process, pixels in shared memory.

Each front is the whole service but the engine. What crosses between the processes is pixels, in
memory that both see, and the arrays of the beams, so that the engine's process does nothing else.
"""

import mmap
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from instant_server import InstantStore, share_the_port  # puts the project on the path

from app import cli, main
from app.captioner import checkpoint
from app.captioner.engines.engine import Engine, EngineResult, Stage
from app.captioner.image.decode import Pixels
from app.captioner.pipeline import Captioner
from app.captioner.search import BeamArrays, StillWaiting, always_waiting
from app.loading import CheckpointStore
from app.settings import Settings, read_settings

SLOTS = 2  # batches of a front under way at once
FRONT = "BENCH_FRONT"


class RemoteEngine:
    """The engine in another process."""

    max_concurrent_batches = SLOTS
    batches_cost_alike = True

    def __init__(
        self, memory: mmap.mmap, pipes: "Sequence[Connection[Any, Any]]", size_px: int
    ) -> None:
        self._pixels = _pixels(memory, size_px)
        self._free: queue.SimpleQueue[tuple[int, Connection[Any, Any]]] = queue.SimpleQueue()
        for free in enumerate(pipes):
            self._free.put(free)

    def run(self, images: Sequence[Pixels], still_waiting: StillWaiting) -> EngineResult:  # noqa: ARG002 - as every engine
        """Hand a batch over and wait for its beams."""
        slot, pipe = self._free.get()
        try:
            np.stack(images, out=self._pixels[slot, : len(images)])
            pipe.send(len(images))
            numbers, beams, stages = pipe.recv()
        finally:
            self._free.put((slot, pipe))
        found = None if beams is None else BeamArrays(*beams)
        return EngineResult(numbers, found, tuple(Stage(*stage) for stage in stages))

    def warm_up(self, images: Sequence[Pixels]) -> None:
        """The engine's process does that."""


def _pixels(memory: mmap.mmap, size_px: int) -> np.ndarray:  # type: ignore[type-arg]
    return np.frombuffer(memory, np.uint8).reshape(SLOTS, -1, size_px, size_px, 3)


class FrontStore(CheckpointStore):
    """The checkpoint without its weights."""

    def load(self, directory: Path, *, beside: bool = False) -> Captioner:  # noqa: ARG002 - as every store
        """Load what a front needs."""
        loaded = checkpoint.load(directory)
        memory, *pipes = map(int, os.environ[FRONT].split())
        engine = RemoteEngine(
            mmap.mmap(memory, 0),
            [Connection(pipe) for pipe in pipes],
            loaded.manifest.image.size_px,
        )
        return Captioner(
            engine,
            loaded.vocabulary,
            loaded.manifest,
            golden=loaded.golden,
            confidence=loaded.confidence,
            precision=os.environ["BENCH_PRECISION"],  # type: ignore[arg-type]
        )


def front() -> int:
    """Be a front."""
    share_the_port()
    main.CheckpointStore = FrontStore  # type: ignore[misc]
    return cli.main(["serve"])


def engine(settings: Settings, fronts: int) -> int:
    """Load the engine, start the fronts, and work for them until told to stop."""
    store = InstantStore(settings)
    captioner = store.load(store.find())
    size_px = captioner.manifest.image.size_px
    turns = threading.Semaphore(captioner.engine.max_concurrent_batches)
    children = []
    for number in range(fronts):
        memory = os.memfd_create("pixels")
        os.ftruncate(memory, SLOTS * settings.max_batch * size_px**2 * 3)
        pixels = _pixels(mmap.mmap(memory, 0), size_px)
        pairs = [socket.socketpair() for _ in range(SLOTS)]
        theirs = [memory, *(theirs.fileno() for _, theirs in pairs)]
        share = settings.decode_processes // fronts
        children.append(
            subprocess.Popen(
                [sys.executable, __file__],
                env={
                    **os.environ,
                    FRONT: " ".join(map(str, theirs)),
                    "BENCH_PRECISION": captioner.precision,
                    "CAPTION_DECODE_PROCESSES": str(max(1, share)),
                },
                pass_fds=theirs,
            )
        )
        os.close(memory)
        for slot, (ours, theirs_) in enumerate(pairs):
            theirs_.close()
            pipe = Connection(ours.detach())
            arguments = (captioner.engine, pixels[slot], pipe, turns)
            threading.Thread(target=_work, args=arguments, daemon=True, name=f"{number}").start()
    signal.signal(signal.SIGTERM, lambda *_: [child.terminate() for child in children])
    return max(child.wait() for child in children)


def _work(
    engine: Engine, pixels: Pixels, pipe: "Connection[Any, Any]", turns: threading.Semaphore
) -> None:
    while True:
        try:
            images = list(pixels[: pipe.recv()])
        except EOFError:
            return
        with turns:
            found = engine.run(images, always_waiting)
        beams = None if found.beams is None else tuple(found.beams)
        pipe.send((found.images, beams, [tuple(stage) for stage in found.stages]))


if __name__ == "__main__":
    if FRONT in os.environ:
        sys.exit(front())
    sys.exit(engine(read_settings({}), int(os.environ["BENCH_FRONTS"])))
