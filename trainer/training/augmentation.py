"""Images cropped, mirrored and tinted by chance, so that an encoder does not learn them by heart.

S side of the square
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torchvision.transforms.v2 import functional as TF


@dataclass(frozen=True)
class AugmentationParams:
    """How an image is augmented in one step: cropped, perhaps mirrored, tinted.

    They are drawn apart from the pixels: ranks draw those of all images, and apply their own.
    """

    top_px: int
    left_px: int
    height_px: int
    width_px: int
    mirrored: bool
    brightness: float
    saturation: float

    @classmethod
    def draw(cls, side_px: int, *, mirrorable: bool, generator: Generator) -> "AugmentationParams":
        """Draw them, for a square of this side."""
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


def augment(image_3SS: Tensor, params: AugmentationParams) -> Tensor:
    """Crop, mirror and tint one uint8 image, so that an encoder does not learn it by heart.

    Of a clip, uint8 ``(F, 3, S, S)``, all frames alike.
    """
    side = image_3SS.shape[-1]
    place = params.top_px, params.left_px, params.height_px, params.width_px
    image_3SS = TF.resized_crop(image_3SS, *place, [side, side])
    if params.mirrored:
        image_3SS = TF.horizontal_flip(image_3SS)
    image_3SS = TF.adjust_brightness(image_3SS, params.brightness)
    tinted: Tensor = TF.adjust_saturation(image_3SS, params.saturation)
    return tinted


def _uniform(generator: Generator) -> float:
    return torch.rand((), generator=generator).item()
