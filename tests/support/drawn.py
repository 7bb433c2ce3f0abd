"""Images drawn for the tests of decoding, written and read."""

import io
from typing import Any

import numpy as np
from PIL import Image

from app.captioner.image.decode import Pixels, decode

MAX_PIXELS = 4_000_000


def read(data: bytes, *, at_least_px: int = 4096, max_pixels: int = MAX_PIXELS) -> Pixels:
    return decode(data, at_least_px=at_least_px, max_pixels=max_pixels)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(width: int = 48, height: int = 32, mode: str = "RGB") -> Image.Image:
    """Smooth and asymmetric: red grows to the right, green downwards."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    pixels = np.stack([x, y, np.full_like(x, 60)], axis=-1).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)
