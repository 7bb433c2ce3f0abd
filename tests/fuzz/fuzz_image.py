"""Coverage-guided fuzzing of `image.decode`, by hand: python tests/fuzz/fuzz_image.py -runs=20000

Whatever the bytes are, the answer is an image within its limits or an ImageError with a fixed text.
"""

import io
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["app.captioner"]):
    from app.captioner.image.decode import decode

from PIL import Image

from app.captioner.errors import FORMATS, ImageError

MAX_PIXELS = 10_000
TEXTS = {
    "the file is empty: it has 0 bytes",
    "the image has more pixels than this service accepts",
    "a side of the image is longer than 65535 px",
    "the image is damaged or incomplete",
    "the image would take longer to decode than its size allows",
    "decoding the image takes more memory than it may",
    "this TIFF is in a rare coding: save it with LZW or Deflate and 8 bits a channel",
    "HEIC is not read here: send a JPEG, or install caption-service[heif]",
}
UNSUPPORTED = f"expected a {FORMATS} image"


def try_one(data: bytes) -> None:
    """Decode one input and check the promise."""
    try:
        image_HWC = decode(data, at_least_px=8, max_pixels=MAX_PIXELS)
    except ImageError as error:
        if str(error) not in TEXTS and not str(error).endswith(UNSUPPORTED):
            raise RuntimeError("an error tells something") from error
        return
    height, width, channels = image_HWC.shape
    if channels != 3 or not 0 < height * width <= MAX_PIXELS:
        raise RuntimeError(f"an image of {tuple(image_HWC.shape)} got through")


def write_seeds(folder: Path) -> None:
    """Write one small image of each kind, for the fuzzer to begin with."""
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"):
        for mode in ("RGB", "L"):
            _write_seed(folder / f"{mode}.{kind}", mode, kind)
    for coding in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        _write_seed(folder / f"{coding}.TIFF", "RGB", "TIFF", compression=coding)
    _write_seed(folder / "fax.TIFF", "1", "TIFF", compression="group4")


def _write_seed(path: Path, mode: str, kind: str, **options: str) -> None:
    file = io.BytesIO()
    Image.new(mode, (16, 12), 99).save(file, kind, **options)
    path.write_bytes(file.getvalue())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as corpus:
        write_seeds(Path(corpus))
        bounds = ["-max_len=4096", "-max_total_time=60"]  # what is typed comes later and wins
        atheris.Setup([sys.argv[0], *bounds, *sys.argv[1:], corpus], try_one)
        atheris.Fuzz()
