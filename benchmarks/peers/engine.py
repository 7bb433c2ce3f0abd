"""What each peer serves: the same checkpoint, in plain torch or with our `Captioner`.

The environment says which: BENCH_ENGINE, BENCH_CHECKPOINT, BENCH_DEVICE, BENCH_PORT, BENCH_THREADS
that compute, BENCH_BATCH, how many images go together at most, BENCH_DECODERS, how many processes a
peer that can may decode in, and BENCH_TIMEOUT_S, the seconds after which a peer that can may give a
request up; BENCH_PRECISION is our `Captioner`'s.
"""

import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

sys.path[:0] = map(str, Path(__file__).resolve().parents[1:3])

PORT = int(os.environ.get("BENCH_PORT", "18400"))
DEVICE = os.environ.get("BENCH_DEVICE", "cpu")
DECODERS = int(os.environ.get("BENCH_DECODERS", "2"))
TIMEOUT_S = float(os.environ.get("BENCH_TIMEOUT_S", "30"))
MAX_BATCH = int(os.environ.get("BENCH_BATCH", "8"))
WAIT_S = 0.01


Pixels = NDArray[np.uint8]
THREADS = int(os.environ.get("BENCH_THREADS", "1"))
CHECKPOINT = Path(os.environ.get("BENCH_CHECKPOINT", "."))
MAX_PIXELS = 40_000_000


class Engine(Protocol):
    """A captioner as the peers use it."""

    def read(self, data: bytes) -> Pixels:
        """Turn the bytes of a photo into the network's square: uint8 (S, S, 3)."""

    def caption(self, images: list[Pixels]) -> list[str]:
        """Say a sentence about each."""


class Ours:
    """Our `Captioner`, its best caption only; a batch is shared out among the threads."""

    def __init__(self) -> None:
        from app.captioner.pipeline import Captioner  # noqa: PLC0415 - the plain engine needs none

        precision = os.environ["BENCH_PRECISION"]
        self._captioner = Captioner.load(
            CHECKPOINT, device=DEVICE, precision=precision, workers=THREADS
        )

    def read(self, data: bytes) -> Pixels:
        """Turn the bytes of a photo into the network's square: uint8 (S, S, 3)."""
        return self._captioner.read(data, max_pixels=MAX_PIXELS)

    def caption(self, images: list[Pixels]) -> list[str]:
        """Say a sentence about each."""
        from limit import side_by_side  # noqa: PLC0415

        return [best.text for best, *_ in side_by_side(self._captioner, images)]


def load_engine() -> Engine:
    """Load the engine that the environment names."""
    if os.environ["BENCH_ENGINE"] == "captioner":
        return Ours()
    import torch  # noqa: PLC0415

    from plain import PlainCaptioner  # noqa: PLC0415

    torch.set_num_threads(THREADS)
    return PlainCaptioner.load(CHECKPOINT, DEVICE)


def load_reader() -> Callable[[bytes], Pixels]:
    """Give the engine's ``read`` alone, for processes that only decode."""
    if os.environ["BENCH_ENGINE"] == "captioner":
        return _our_reader()
    from plain import read  # noqa: PLC0415

    manifest = json.loads((CHECKPOINT / "manifest.json").read_text(encoding="utf-8"))
    return partial(read, size_px=manifest["image"]["size_px"])


def _our_reader() -> Callable[[bytes], Pixels]:
    from app.captioner import checkpoint  # noqa: PLC0415
    from app.captioner.image import decode, fit  # noqa: PLC0415

    about = checkpoint.read_manifest(CHECKPOINT).image

    def read(data: bytes) -> Pixels:
        pixels_HWC = decode.decode(data, at_least_px=about.size_px, max_pixels=MAX_PIXELS)
        return fit.fit(
            pixels_HWC, size_px=about.size_px, how=about.fit, resampling=about.resampling
        )

    return read
