"""The network prepared for a CPU: the same arithmetic with fewer walks over memory.

Batch norm is folded into the convolution before it, an activation is applied while the result of
its convolution is still in the cache, weights lie in memory as oneDNN reads them, and what the LSTM
takes of a word is looked up in a table instead of computed. A row of a product is computed the same
way however many rows there are, so a caption is the same bit by bit alone and in company.

This is what torch's compiler makes of a network by freezing it, without the half minute that takes.

B images, C channels, H/W pixels, G gates of an LSTM, V words, N any leading axes, I/O widths
"""

import math
from contextlib import suppress
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.captioner.exported import Unknown, exported_encoder
from app.captioner.folding import decoder_with_table, folded_encoder, network_of
from app.captioner.network import Decoder, Encoder, Network

_OPERATORS = (
    "_convolution_pointwise",
    "_reorder_convolution_weight",
    "_linear_pointwise",
    "_reorder_linear_weight",
)
EXACT_WORDS = 16
"""So many of the likeliest words are scored in float32, several times what a beam can keep."""
_SEVERAL = 2
"""oneDNN wants one layout of a weight for a single image, which depends on the number of cores that
share it, and another for two images or more. With a layout of two cores, one core takes twice as
long for an image."""
_IMAGES_AT_ONCE = {torch.float32: 4, torch.bfloat16: 8}
"""With more, a map of MobileNetV2 takes over 32 MB. So much glibc gives back to the system after
each use and takes anew, page by page, which costs as much as a convolution."""
_MOST_ROWS = 120
"""fbgemm splits more rows than that into this many and the rest."""
_MOST_IDLE_ROWS = 5


class _Activation(NamedTuple):
    """An activation as oneDNN's operators are told about it."""

    name: str
    numbers: tuple[float, ...] = ()
    algorithm: str = ""


_NO_ACTIVATION = _Activation("none")
_ACTIVATIONS: dict[type[nn.Module], _Activation] = {
    nn.ReLU: _Activation("relu"),
    nn.ReLU6: _Activation("hardtanh", (0.0, 6.0)),
    nn.Hardswish: _Activation("hardswish"),
    nn.SiLU: _Activation("swish"),
}


def available() -> bool:
    """Say whether this build of torch has what it takes."""
    return torch.backends.mkldnn.is_available() and all(  # type: ignore[no-untyped-call]
        hasattr(torch.ops.mkldnn, name) for name in _OPERATORS
    )


def computes(dtype: torch.dtype) -> bool:
    """Say whether oneDNN can compute in this type on this CPU."""
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001


@torch.no_grad()
def fused(network: Network, dtype: torch.dtype) -> Network:
    """Prepare a network for inference on a CPU.

    In float32 ONNX Runtime computes the encoder, if it can be written down for it.

    Args:
        network: on the CPU; it stays as it is.
        dtype: float32, or bfloat16 for convolutions and the products of the LSTM and attention.
            Images, features, word scores and all sums stay in float32. With float32 weights that
            are halves, as those of a checkpoint are, lie in memory as halves.

    Returns:
        A network of the same interface that cannot be trained or saved.
    """
    encoder = _fastest_encoder(network.encoder, dtype)
    return network_of(network, encoder, _fused_decoder(network.decoder, dtype))


# --- encoder ------------------------------------------------------------------------------------


def _fastest_encoder(encoder: Encoder, dtype: torch.dtype) -> Encoder:
    if dtype == torch.float32:
        with suppress(Unknown):
            return exported_encoder(encoder)
    return packed_encoder(encoder, dtype)


def packed_encoder(encoder: Encoder, dtype: torch.dtype) -> Encoder:
    """Prepare an encoder with oneDNN's convolutions, see `fused`."""
    packed = folded_encoder(encoder, dtype, activations=tuple(_ACTIVATIONS), join=_Convolution)
    packed.blocks = nn.Sequential(_InPieces(packed.blocks, _IMAGES_AT_ONCE[dtype]))
    return packed


class _InPieces(nn.Module):
    """What it holds, a few images at a time."""

    def __init__(self, blocks: nn.Module, images: int) -> None:
        super().__init__()
        self.blocks = blocks
        self._images = images

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        pieces = pixels_BCHW.chunk(math.ceil(len(pixels_BCHW) / self._images))
        return torch.cat([self.blocks(piece) for piece in pieces])


class _Convolution(nn.Module):
    """A convolution and its activation in one go."""

    def __init__(self, convolution: nn.Conv2d, activation: nn.Module | None) -> None:
        super().__init__()
        self._geometry = (
            list(convolution.padding),
            list(convolution.stride),
            list(convolution.dilation),
            convolution.groups,
        )
        known = _NO_ACTIVATION if activation is None else _ACTIVATIONS[type(activation)]
        self._activation = (known.name, list(known.numbers), known.algorithm)
        self.weight, self.bias = convolution.weight, convolution.bias
        self._packed: dict[tuple[int, ...], Tensor] = {}

    def forward(self, maps_BCHW: Tensor) -> Tensor:
        weight = self._weight_for(min(len(maps_BCHW), _SEVERAL), *maps_BCHW.shape[1:])
        result: Tensor = torch.ops.mkldnn._convolution_pointwise(  # noqa: SLF001 - no public name
            maps_BCHW, weight, self.bias, *self._geometry, *self._activation
        )
        return result

    def _weight_for(self, *shape: int) -> Tensor:
        cores = torch.get_num_threads() if shape[0] < _SEVERAL else 0
        if (cores, *shape) not in self._packed:
            self._packed[cores, *shape] = torch.ops.mkldnn._reorder_convolution_weight(  # noqa: SLF001
                self.weight, *self._geometry, list(shape)
            )
        return self._packed[cores, *shape]


# --- decoder ------------------------------------------------------------------------------------


def _fused_decoder(decoder: Decoder, dtype: torch.dtype) -> Decoder:
    prepared = decoder_with_table(decoder)
    for name, layer in list(prepared.named_children()):
        if isinstance(layer, nn.Linear):
            prepared.set_submodule(name, _fused_linear(name, layer, dtype))
    return prepared


def _fused_linear(name: str, layer: nn.Linear, dtype: torch.dtype) -> nn.Module:
    if dtype != torch.float32:
        return _WordScores(layer, dtype) if name == "words" else _Linear(layer, dtype)
    if torch.equal(layer.weight.half().float(), layer.weight) and _row_counts():
        return _HalfWeights(layer.weight, layer.bias)
    return _Linear(layer, dtype)


@cache
def _row_counts() -> list[int]:
    """Find out how many rows fbgemm has to be given so that it computes each as it does in company.

    It has a kernel for each of several numbers of rows and makes up the others from these. The
    kernels for one row and for two round otherwise with AVX2.

    Returns:
        For 0 to 120 rows the next count without such a kernel. Nothing if there is no fbgemm, or
        if the next count is far.
    """
    engines = torch.backends.quantized.supported_engines
    if "fbgemm" not in engines or not hasattr(torch.ops.quantized, "linear_dynamic_fp16"):
        return []
    generator = torch.Generator().manual_seed(0)
    rows_NI = torch.randn(_MOST_ROWS, 64, generator=generator)
    packed = torch.ops.quantized.linear_prepack_fp16(torch.randn(32, 64, generator=generator), None)
    all_NO = torch.ops.quantized.linear_dynamic_fp16(rows_NI, packed)
    counts = [_MOST_ROWS]
    for count in range(_MOST_ROWS - 1, -1, -1):
        some_NO = torch.ops.quantized.linear_dynamic_fp16(rows_NI[:count], packed)
        counts.append(count if torch.equal(some_NO, all_NO[:count]) else counts[-1])
    counts.reverse()
    idle = max(found - count for count, found in enumerate(counts))
    return counts if idle <= _MOST_IDLE_ROWS else []


class _WordScores(nn.Module):
    """Word scores from rounded weights, the likeliest ones exact.

    Word scores are compared: their rounding would choose words. Among all of them it hardly moves
    the denominator of the softmax, and reading the weights once a step is what a search spends
    most of its time on.
    """

    def __init__(self, layer: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self._rounded = _Linear(layer, dtype)
        self._weight_VI, self._bias_V = layer.weight, layer.bias

    def forward(self, rows_BKI: Tensor) -> Tensor:
        scores_BKV: Tensor = self._rounded(rows_BKI)
        words_BKN = scores_BKV.topk(min(EXACT_WORDS, scores_BKV.shape[-1])).indices
        weights_BKNI = F.embedding(words_BKN, self._weight_VI)
        exact_BKN = (weights_BKNI * rows_BKI.unsqueeze(-2)).sum(-1) + self._bias_V[words_BKN]
        return scores_BKV.scatter_(-1, words_BKN, exact_BKN)


class _HalfWeights(nn.Module):
    """A linear layer with half-precision weights, multiplied and added up in float32.

    Few rows wait for the weights to be read, and halves are half of the bytes.
    """

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        super().__init__()
        self._width = len(weight_OI)
        self._packed = torch.ops.quantized.linear_prepack_fp16(weight_OI, bias_O)

    def forward(self, rows_NI: Tensor) -> Tensor:
        flat_NI = rows_NI.flatten(0, -2)
        rest = len(flat_NI) % _MOST_ROWS
        idle = _row_counts()[rest] - rest
        if idle:
            flat_NI = F.pad(flat_NI, (0, 0, 0, idle))
        flat_NO: Tensor = torch.ops.quantized.linear_dynamic_fp16(flat_NI, self._packed)
        return flat_NO[: len(flat_NO) - idle].view(*rows_NI.shape[:-1], self._width)


class _Linear(nn.Module):
    """A linear layer whose weight lies as oneDNN reads it; float32 in and out."""

    def __init__(self, layer: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype
        self._bias = None if layer.bias is None else layer.bias.to(dtype)
        self._weight: Tensor = torch.ops.mkldnn._reorder_linear_weight(  # noqa: SLF001
            layer.weight.to(dtype).contiguous()
        )

    def forward(self, rows_NI: Tensor) -> Tensor:
        rows_NO: Tensor = torch.ops.mkldnn._linear_pointwise(  # noqa: SLF001
            rows_NI.to(self._dtype), self._weight, self._bias, _NO_ACTIVATION.name, [], ""
        )
        return rows_NO.float()
