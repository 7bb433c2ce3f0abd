"""What each peer serves: the same checkpoint, in plain torch or with our `Captioner`.

The environment says which: BENCH_ENGINE, BENCH_CHECKPOINT, BENCH_DEVICE, BENCH_PORT, BENCH_THREADS
of torch, BENCH_BATCH, how many images go together at most, BENCH_DECODERS, how many processes a
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

import torch
from torch import Tensor

sys.path[:0] = map(str, Path(__file__).resolve().parents[1:3])

PORT = int(os.environ.get("BENCH_PORT", "18400"))
DEVICE = os.environ.get("BENCH_DEVICE", "cpu")
DECODERS = int(os.environ.get("BENCH_DECODERS", "2"))
TIMEOUT_S = float(os.environ.get("BENCH_TIMEOUT_S", "30"))
MAX_BATCH = int(os.environ.get("BENCH_BATCH", "8"))
WAIT_S = 0.01


CHECKPOINT = Path(os.environ.get("BENCH_CHECKPOINT", "."))
MAX_PIXELS = 40_000_000


class Engine(Protocol):
    """A captioner as the peers use it."""

    def read(self, data: bytes) -> Tensor:
        """Turn the bytes of a photo into the network's square."""

    def caption(self, images: list[Tensor]) -> list[str]:
        """Say a sentence about each."""


class Ours:
    """Our `Captioner`, its best caption only."""

    def __init__(self) -> None:
        from app.captioner.pipeline import Captioner  # noqa: PLC0415 - the plain engine needs none

        precision = os.environ["BENCH_PRECISION"]
        self._captioner = Captioner.load(CHECKPOINT, device=DEVICE, precision=precision)

    def read(self, data: bytes) -> Tensor:
        """Turn the bytes of a photo into the network's square."""
        return self._captioner.read(data, max_pixels=MAX_PIXELS)

    def caption(self, images: list[Tensor]) -> list[str]:
        """Say a sentence about each."""
        return [candidates[0].text for candidates in self._captioner.caption(images)]


def load_engine() -> Engine:
    """Load the engine that the environment names."""
    torch.set_num_threads(int(os.environ["BENCH_THREADS"]))
    if os.environ["BENCH_ENGINE"] == "captioner":
        return Ours()
    from plain import PlainCaptioner  # noqa: PLC0415

    return PlainCaptioner.load(CHECKPOINT, DEVICE)


def load_reader() -> Callable[[bytes], Tensor]:
    """Give the engine's ``read`` alone, for processes that only decode."""
    torch.set_num_threads(1)
    if os.environ["BENCH_ENGINE"] == "captioner":
        return _our_reader()
    from plain import read  # noqa: PLC0415

    manifest = json.loads((CHECKPOINT / "manifest.json").read_text(encoding="utf-8"))
    return partial(read, size_px=manifest["image"]["size_px"])


def _our_reader() -> Callable[[bytes], Tensor]:
    from app.captioner import checkpoint, image  # noqa: PLC0415

    about = checkpoint.read_manifest(CHECKPOINT).image

    def read(data: bytes) -> Tensor:
        image_CHW = image.decode(data, at_least_px=about.size_px, max_pixels=MAX_PIXELS)
        return image.fit(image_CHW, size_px=about.size_px, how=about.fit)

    return read
