"""A captioner without a network that says of a picture which colour it has."""

import time
from collections.abc import Sequence

import numpy as np

from app.captioner.captions import Candidates, Caption
from app.captioner.engines.engine import Stage
from app.captioner.image import decode
from app.captioner.image.decode import Decode, EncodedImage, Pixels
from app.captioner.image.fit import fit
from app.captioner.pipeline import BatchResult
from app.captioner.search import StillWaiting, always_waiting
from support.fake import FakeCaptioner

COLOURS = {
    "a red car on a road": (220, 30, 30),
    "a green field under trees": (30, 200, 30),
    "two dogs in blue water": (30, 30, 220),
    "snow": (250, 250, 250),
}


class ColourCaptioner(FakeCaptioner):
    """Says one of `COLOURS`, that of the nearest colour."""

    def __init__(self) -> None:
        super().__init__()
        self.confidence = 0.8

    def read(self, data: bytes, *, max_pixels: int, decode: Decode = decode.decode) -> Pixels:
        size_px = self.manifest.image.size_px
        return fit(
            decode(data, at_least_px=size_px, max_pixels=max_pixels), size_px=size_px, how="squeeze"
        )

    def caption(
        self,
        images: Sequence[Pixels | EncodedImage],
        still_waiting: StillWaiting = always_waiting,  # noqa: ARG002
    ) -> BatchResult:
        self.entered.set()
        self.gate.wait(10)
        squares = [each for each in images if not isinstance(each, EncodedImage)]
        now_s = time.monotonic()
        stages = tuple(Stage(name, now_s, now_s) for name in ("encode", "search"))
        return BatchResult(tuple(map(self._said, squares)), {}, stages)

    def _said(self, square: Pixels) -> Candidates:
        colour = square.reshape(-1, 3).mean(0)
        best = sorted(COLOURS, key=lambda text: float(np.abs(colour - COLOURS[text]).sum()))
        confidence = self.confidence
        return Candidates(
            Caption(text, -1.0 - k, -0.5 - k, (), confidence) for k, text in enumerate(best[:3])
        )
