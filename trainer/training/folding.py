"""An encoder that learns while its batch norms, whose statistics are at rest, cost nothing.

B images, C channels, H/W pixels
"""

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn

from app.captioner.engines.folding import fold
from app.captioner.model.network import Encoder


def fold_with_gradients(encoder: Encoder) -> Encoder:
    """Compute what an encoder computes, each batch norm as part of the convolution before it.

    A batch norm whose statistics do not change scales and shifts. Done to the weights instead of
    the maps that costs next to nothing: on a CPU the norms take as long as the convolutions.

    Args:
        encoder: shares its parameters with what is returned, so that both learn what one learns.
    """
    folded = copy.copy(encoder)
    traced = fx.symbolic_trace(nn.Sequential(encoder.blocks, encoder.head))
    fold(traced, _Folded)
    folded._modules = dict(encoder._modules)  # noqa: SLF001 - a shallow copy shares this dict
    folded.blocks, folded.head = nn.Sequential(traced), nn.Sequential()
    return folded


class _Folded(nn.Module):
    def __init__(self, convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.convolution, self.norm = convolution, norm

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        norm: Any = self.norm
        scale_C = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        shift_C = norm.bias - norm.running_mean * scale_C
        weight = self.convolution.weight * scale_C.view(-1, 1, 1, 1)
        if self.convolution.bias is not None:
            shift_C = shift_C + self.convolution.bias * scale_C
        folded: Tensor = self.convolution._conv_forward(maps_BCHW, weight, shift_C)  # noqa: SLF001
        return folded
