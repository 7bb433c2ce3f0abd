"""The bytes of ``weights.safetensors``, held against what they say of themselves before use.

Reference: https://github.com/huggingface/safetensors, "Format"
"""

import math
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from app.captioner import documents

MOST_PARAMETERS = 2**28
GRAPH_CONSTANTS = "graphs.constants"
"""The name of the tensor that holds what graphs need beside the weights."""
_MOST_HEADER_BYTES = 2**20
_LENGTH_BYTES = 8
MOST_BYTES = _LENGTH_BYTES + _MOST_HEADER_BYTES + 4 * MOST_PARAMETERS
_METADATA = "__metadata__"
_DTYPES: Final[Mapping[str, Any]] = {
    "F32": np.float32,
    "F16": np.float16,
    "I64": np.int64,
    "U8": np.uint8,
}


class Place(NamedTuple):
    """Where a tensor lies in its file.

    Attributes:
        dtype: as safetensors names it.
        shape: of the tensor.
        offset: of its first byte from the start of the file.
        size: in bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


def layout(content: bytes) -> dict[str, Place]:
    """Read where every tensor lies.

    Raises:
        ValueError: it is no safetensors file, or one with other types than ours.
    """
    size = int.from_bytes(content[:_LENGTH_BYTES], "little")
    start = _LENGTH_BYTES + size
    if not 0 < size <= min(_MOST_HEADER_BYTES, len(content) - _LENGTH_BYTES):
        raise _not_safetensors("its header does not fit")
    try:
        header = documents.parse(content[_LENGTH_BYTES:start], most_values=size)
        places = {name: _place(about, start) for name, about in header.items() if name != _METADATA}
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise _not_safetensors(str(error)[:200]) from None
    _check_cover(places, start, len(content))
    return places


def _place(about: Mapping[str, Any], start: int) -> Place:
    dtype, shape, (begin, end) = about["dtype"], tuple(about["shape"]), about["data_offsets"]
    if dtype not in _DTYPES:
        raise ValueError(f"a tensor has the type {str(dtype)[:20]}")
    numbers = (*shape, begin, end)
    if not all(isinstance(each, int) and 0 <= each <= MOST_BYTES for each in numbers):
        raise ValueError("a tensor has an impossible shape or place")
    if end - begin != math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize:
        raise ValueError("a tensor has another size than its shape")
    return Place(dtype, shape, start + begin, end - begin)


def _check_cover(places: Mapping[str, Place], start: int, end: int) -> None:
    """See that the tensors lie one after another, with no byte between or behind them."""
    for place in sorted(places.values(), key=lambda each: (each.offset, each.size)):
        if place.offset != start:
            raise _not_safetensors("its tensors overlap, or leave gaps")
        start += place.size
    if start != end:
        raise _not_safetensors(f"it has {end} bytes, its header speaks of {start}")


def _not_safetensors(reason: str) -> ValueError:
    return ValueError(f"it is not a safetensors file: {reason}")


def array(content: bytes, place: Place) -> npt.NDArray[Any]:
    """Look at one tensor where it lies, without a copy."""
    count = math.prod(place.shape)
    flat = np.frombuffer(content, _DTYPES[place.dtype], count, place.offset)
    return flat.reshape(place.shape)


def check_finite(content: bytes, places: Mapping[str, Place]) -> None:
    """See that every floating point number is one.

    Raises:
        ValueError: NaN or infinity.
    """
    for name, place in places.items():
        if place.dtype.startswith("F") and not _is_finite(array(content, place)):
            raise ValueError(f"{name[:100]} holds NaN or infinity: train or copy it again")


def _is_finite(numbers: npt.NDArray[Any]) -> bool:
    if numbers.dtype == np.float16:  # by its exponent: numpy is slow at halves
        return not np.any((numbers.view(np.uint16) & 0x7C00) == 0x7C00)
    return bool(np.isfinite(numbers).all())
