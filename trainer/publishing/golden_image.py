"""The image that every published checkpoint is checked on, drawn here so that it can be shipped."""

import io

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

GOLDEN_SIDE_PX = 256


def draw_golden_image() -> bytes:
    """Draw a sunny beach with a figure and a ball: ours, so that it can be shipped.

    Returns:
        A PNG file; the same bytes under the same Pillow.
    """
    picture = Image.fromarray(_sky_and_sand())
    pen = ImageDraw.Draw(picture)
    pen.ellipse((188, 18, 228, 58), fill=(255, 240, 180))
    pen.rectangle((0, 120, 256, 165), fill=(40, 110, 160))
    pen.ellipse((112, 88, 138, 114), fill=(205, 160, 130))
    pen.rectangle((108, 114, 142, 172), fill=(190, 40, 50))
    pen.line((118, 172, 104, 222), fill=(60, 50, 90), width=12)
    pen.line((132, 172, 150, 220), fill=(60, 50, 90), width=12)
    pen.line((142, 122, 180, 96), fill=(205, 160, 130), width=9)
    pen.ellipse((180, 70, 208, 98), fill=(245, 245, 245))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def _sky_and_sand() -> npt.NDArray[np.uint8]:
    rows = np.linspace(0, 1, GOLDEN_SIDE_PX)[:, None, None]
    sky = np.array([110, 170, 230]) + rows * np.array([90, 50, 10])
    sand = np.array([225, 200, 150]) - rows * np.array([40, 40, 40])
    picture = np.where(rows < 0.6, sky, sand)
    return np.repeat(picture, GOLDEN_SIDE_PX, axis=1).round().astype(np.uint8)
