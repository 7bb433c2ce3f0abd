"""Pixels of any size -> the square that the network sees.

H/W pixels, S side of the square
"""

from typing import Final, Literal

import numpy as np
from PIL import Image

from app.captioner.image.decode import Pixels

Fit = Literal["squeeze", "crop", "pad"]
Resampling = Literal["bilinear"]

_FILTERS: Final = {"bilinear": Image.Resampling.BILINEAR}
_FLATTEST = 64  # times the square: a taller image is shortened before anything
_PLAIN = 3  # of 255: a JPEG of one colour comes back as several that are as near
_PEEK = 16
_PAD_GREY = 117  # the mean of ImageNet: near zero once normalised


def fit(
    pixels_HWC: Pixels, *, size_px: int, how: Fit, resampling: Resampling = "bilinear"
) -> Pixels:
    """Bring an image to a square.

    Args:
        pixels_HWC: uint8 RGB ``(H, W, 3)``.
        size_px: the side S of the square.
        how: ``squeeze`` gives up the aspect ratio, ``crop`` keeps the middle, ``pad`` keeps
            everything and fills up with grey.
        resampling: the filter, as Pillow names it; its support grows when an image shrinks, which
            other libraries call antialiasing.

    Returns:
        uint8 ``(S, S, 3)``, contiguous.
    """
    image = Image.fromarray(pixels_HWC)
    kernel = _FILTERS[resampling]
    if how == "pad":
        return np.array(_padded(image, size_px, kernel))
    box = _middle(image.size) if how == "crop" else (0, 0, *image.size)
    return np.array(_resized(image, (size_px, size_px), kernel, box))


def is_one_colour(pixels_SSC: Pixels, how: Fit) -> bool:
    """Say whether a square that `fit` made shows nothing: a plain image, or one of one pixel."""
    if np.ptp(pixels_SSC[::_PEEK, ::_PEEK], axis=(0, 1)).max() > _PLAIN and how != "pad":
        return False  # nearly every photo
    colours_NC = pixels_SSC.reshape(-1, 3)
    if how == "pad":
        colours_NC = colours_NC[(colours_NC != _PAD_GREY).any(axis=1)]
    return not colours_NC.size or bool(np.ptp(colours_NC, axis=0).max() <= _PLAIN)


_Box = tuple[int, int, int, int]


def _middle(size: tuple[int, int]) -> _Box:
    """Give the largest square around the middle: left, top, right, bottom."""
    side = min(size)
    left, top = (round((each - side) / 2) for each in size)
    return left, top, left + side, top + side


def _padded(image: Image.Image, size_px: int, kernel: Image.Resampling) -> Image.Image:
    longest = max(image.size)
    width, height = (max(1, round(side * size_px / longest)) for side in image.size)
    square = Image.new("RGB", (size_px, size_px), (_PAD_GREY,) * 3)
    small = _resized(image, (width, height), kernel, (0, 0, *image.size))
    square.paste(small, ((size_px - width) // 2, (size_px - height) // 2))
    return square


def _resized(
    image: Image.Image, size: tuple[int, int], kernel: Image.Resampling, box: _Box
) -> Image.Image:
    height = box[3] - box[1]
    if height > _FLATTEST * size[1]:  # else made as wide as the square first
        image = image.resize((box[2] - box[0], size[1]), kernel, box)
        box = (0, 0, *image.size)
    return image.resize(size, kernel, box)
