"""Images cropped, mirrored and tinted by chance, so that an encoder does not learn them by heart.

S side of the square
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torchvision.transforms.v2 import functional as TF


@dataclass(frozen=True)
class Look:
    """How an image is shown in one step: cropped, perhaps mirrored, tinted.

    It is drawn apart from the pixels: ranks draw the looks of all images, and work on their own.
    """

    top_px: int
    left_px: int
    height_px: int
    width_px: int
    mirrored: bool
    brightness: float
    saturation: float

    @classmethod
    def draw(cls, side_px: int, *, mirrorable: bool, generator: Generator) -> "Look":
        """Draw one, for a square of this side."""
        scale = 0.7 + 0.3 * _uniform(generator)
        stretch = (0.85 + 0.3 * _uniform(generator)) ** 0.5
        height = min(side_px, round(side_px * scale**0.5 * stretch))
        width = min(side_px, round(side_px * scale**0.5 / stretch))
        return cls(
            top_px=int((side_px - height + 1) * _uniform(generator)),
            left_px=int((side_px - width + 1) * _uniform(generator)),
            height_px=height,
            width_px=width,
            mirrored=mirrorable and _uniform(generator) < 0.5,
            brightness=0.8 + 0.4 * _uniform(generator),
            saturation=0.8 + 0.4 * _uniform(generator),
        )


def augment(image_3SS: Tensor, look: Look) -> Tensor:
    """Crop, mirror and tint one uint8 image, so that an encoder does not learn it by heart."""
    side = image_3SS.shape[-1]
    place = look.top_px, look.left_px, look.height_px, look.width_px
    image_3SS = TF.resized_crop(image_3SS, *place, [side, side])
    if look.mirrored:
        image_3SS = TF.horizontal_flip(image_3SS)
    image_3SS = TF.adjust_brightness(image_3SS, look.brightness)
    tinted: Tensor = TF.adjust_saturation(image_3SS, look.saturation)
    return tinted


def _uniform(generator: Generator) -> float:
    return torch.rand((), generator=generator).item()
