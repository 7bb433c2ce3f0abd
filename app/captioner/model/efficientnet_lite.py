"""EfficientNet-Lite, which torchvision lacks: EfficientNet for hardware that likes it plain.

Against EfficientNet (Tan and Le 2019) it has ReLU6 for SiLU, no squeeze-and-excitation, and a stem
and a last convolution that keep their width. Reference: the EfficientNet-Lite models of
tensorflow/tpu, 2020.
"""

import math
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

_NORM_EPSILON = 1e-3
_STEM_WIDTH, _LAST_WIDTH, _CLASSES = 32, 1280, 1000


class _Scale(NamedTuple):
    """How a member of the family differs from the smallest."""

    width: float
    depth: float


class _Stage(NamedTuple):
    expansion: int
    kernel: int
    stride: int
    width: int
    blocks: int


SCALES = {
    "efficientnet_lite0": _Scale(1.0, 1.0),
    "efficientnet_lite1": _Scale(1.0, 1.1),
    "efficientnet_lite2": _Scale(1.1, 1.2),
}

_STAGES = (
    _Stage(1, 3, 1, 16, 1),
    _Stage(6, 3, 2, 24, 2),
    _Stage(6, 5, 2, 40, 2),
    _Stage(6, 3, 2, 80, 3),
    _Stage(6, 5, 1, 112, 3),
    _Stage(6, 5, 2, 192, 4),
    _Stage(6, 3, 1, 320, 1),
)


class EfficientNetLite(nn.Module):
    """The classifier, with random weights, laid out as torchvision's networks are.

    Args:
        name: a name of `SCALES`.

    Attributes:
        features: blocks up to the last convolution, ``B3HW -> BDhw`` with D = 1280, h = H / 32.
        classifier: from the mean of the features to 1000 ImageNet classes.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        scale = SCALES[name]
        blocks: list[nn.Module] = [_convolution(3, _STEM_WIDTH, kernel=3, stride=2)]
        entering = _STEM_WIDTH
        for position, stage in enumerate(_STAGES):
            at_an_end = position in {0, len(_STAGES) - 1}
            leaving = _rounded_width(stage.width * scale.width)
            count = stage.blocks if at_an_end else math.ceil(stage.blocks * scale.depth)
            for index in range(count):
                stride = 1 if index else stage.stride
                blocks.append(_InvertedResidual(entering, leaving, stage, stride))
                entering = leaving
        blocks.append(_convolution(entering, _LAST_WIDTH, kernel=1))
        self.features = nn.Sequential(*blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(_LAST_WIDTH, _CLASSES))

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """Turn normalised pixels into ``logits_B1000``."""
        logits: Tensor = self.classifier(self.avgpool(self.features(pixels_BCHW)).flatten(1))
        return logits


class _InvertedResidual(nn.Module):
    """Expand, look around, shrink (Sandler et al. 2018, "MobileNetV2")."""

    def __init__(self, entering: int, leaving: int, stage: _Stage, stride: int) -> None:
        super().__init__()
        wide = entering * stage.expansion
        layers = [_convolution(entering, wide, kernel=1)] if stage.expansion > 1 else []
        self.layers = nn.Sequential(
            *layers,
            _convolution(wide, wide, kernel=stage.kernel, stride=stride, groups=wide),
            _convolution(wide, leaving, kernel=1, activation=None),
        )
        self.adds = stride == 1 and entering == leaving

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        out_BCHW: Tensor = self.layers(maps_BCHW)
        return maps_BCHW + out_BCHW if self.adds else out_BCHW


def _convolution(
    entering: int,
    leaving: int,
    *,
    kernel: int,
    stride: int = 1,
    groups: int = 1,
    activation: type[nn.Module] | None = nn.ReLU6,
) -> nn.Module:
    """Pad on both sides alike, as torchvision does; TensorFlow pads at the end first."""
    layer: nn.Module = Conv2dNormActivation(
        entering,
        leaving,
        kernel,
        stride,
        groups=groups,
        norm_layer=partial(nn.BatchNorm2d, eps=_NORM_EPSILON),
        activation_layer=activation,
    )
    return layer


def _rounded_width(width: float, divisor: int = 8) -> int:
    """Round to a multiple of 8, never down by more than a tenth (Tan and Le 2019)."""
    rounded = max(divisor, int(width + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * width else rounded + divisor
