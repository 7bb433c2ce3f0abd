"""Bytes -> uint8 RGB tensor -> fitted square.

B batch, C channels, H/W pixels, S side of the square.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from app.captioner import decode as decode_

Fit = Literal["squeeze", "crop", "pad"]


class Unread(NamedTuple):
    """An upload that is quick to decode, and is still to be.

    Attributes:
        data: the file.
        max_pixels: width times height that the header may declare.
        nbytes: none of its own: whoever has the upload has made room for it.
    """

    data: bytes
    max_pixels: int
    nbytes: int = 0


_FLATTEST = 64  # times the square: a taller image is shortened before anything
_PAD_GREY = 117  # the mean of ImageNet: near zero once normalised


def decode(data: bytes, *, at_least_px: int, max_pixels: int) -> Tensor:
    """Decode one upload, see `decode.decode`.

    Args:
        data: a whole JPEG, PNG or WebP file.
        at_least_px: a large image may come back scaled down, but never below this on either side.
        max_pixels: width times height that the header may declare.

    Returns:
        uint8 RGB of shape (3, H, W), values 0..255. The channels are last in memory, as decoders
        leave them: putting them first costs more than the resizing that follows.

    Raises:
        ImageError: the upload is at fault; its subclass says how.
    """
    return tensor(decode_.decode(data, at_least_px=at_least_px, max_pixels=max_pixels))


def tensor(pixels_HWC: decode_.Pixels) -> Tensor:
    """Give the pixels of `decode.decode` as a tensor of shape (3, H, W), in the same memory."""
    return torch.from_numpy(pixels_HWC).permute(2, 0, 1)


def fit(image_CHW: Tensor, *, size_px: int, how: Fit) -> Tensor:
    """Bring an image to a square.

    Args:
        image_CHW: uint8 (3, H, W).
        size_px: the side S of the square.
        how: ``squeeze`` gives up the aspect ratio, ``crop`` keeps the middle, ``pad`` keeps
            everything and fills up with grey.

    Returns:
        uint8 (3, S, S), resized with antialiasing, contiguous.
    """
    return _fitted(image_CHW, size_px, how).contiguous()


def _fitted(image_CHW: Tensor, size_px: int, how: Fit) -> Tensor:
    if how == "crop":
        # Cropping first gives the same pixels, and a 1 x 5000 image never becomes 224 x 1 120 000.
        return _resize(F.center_crop(image_CHW, [min(image_CHW.shape[1:])] * 2), size_px, size_px)
    if how == "pad":
        return _pad(image_CHW, size_px)
    return _resize(image_CHW, size_px, size_px)


def _pad(image_CHW: Tensor, size_px: int) -> Tensor:
    longest = max(image_CHW.shape[1:])
    height, width = (max(1, round(side * size_px / longest)) for side in image_CHW.shape[1:])
    top, left = (size_px - height) // 2, (size_px - width) // 2
    padding = [left, top, size_px - width - left, size_px - height - top]
    padded: Tensor = F.pad(_resize(image_CHW, height, width), padding, fill=_PAD_GREY)
    return padded


def _resize(image_CHW: Tensor, height: int, width: int) -> Tensor:
    if image_CHW.shape[1] > _FLATTEST * height:  # else made as wide as the square first
        image_CHW = F.resize(image_CHW, [height, image_CHW.shape[2]], antialias=True)
    resized: Tensor = F.resize(image_CHW, [height, width], antialias=True)
    return resized
