"""Small uploads, drawn here."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def photo(seed: int = 0, *, width: int = 96, height: int = 72, kind: str = "PNG") -> bytes:
    """Draw blocks of random colours, the same for the same seed."""
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST).save(file, kind)
    return file.getvalue()


def slow_png(width: int = 6000, height: int = 6000) -> bytes:
    """A second of a core and more: 16 bits in four channels, each row told from the one above."""
    squeezer, row = zlib.compressobj(1), b"\4" + bytes(8 * width)
    data = b"".join([*(squeezer.compress(row) for _ in range(height)), squeezer.flush()])
    header = struct.pack(">IIBBBBB", width, height, 16, 6, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )
