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

from app.captioner.errors import ImageError

MAX_PIXELS = 10_000
TEXTS = {
    "expected a JPEG, PNG or WebP image",
    "the image has more pixels than this service accepts",
    "the image is damaged or incomplete",
    "the image would take longer to decode than its size allows",
}


def try_one(data: bytes) -> None:
    """Decode one input and check the promise."""
    try:
        image_HWC = decode(data, at_least_px=8, max_pixels=MAX_PIXELS)
    except ImageError as error:
        if str(error) not in TEXTS:
            raise RuntimeError("an error tells something") from error
        return
    height, width, channels = image_HWC.shape
    if channels != 3 or not 0 < height * width <= MAX_PIXELS:
        raise RuntimeError(f"an image of {tuple(image_HWC.shape)} got through")


def write_seeds(folder: Path) -> None:
    """Write one small image of each kind, for the fuzzer to begin with."""
    for kind in ("JPEG", "PNG", "WEBP"):
        for mode in ("RGB", "L"):
            file = io.BytesIO()
            Image.new(mode, (16, 12), 99).save(file, kind)
            (folder / f"{mode}.{kind}").write_bytes(file.getvalue())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as corpus:
        write_seeds(Path(corpus))
        bounds = ["-max_len=4096", "-max_total_time=60"]  # what is typed comes later and wins
        atheris.Setup([sys.argv[0], *bounds, *sys.argv[1:], corpus], try_one)
        atheris.Fuzz()
