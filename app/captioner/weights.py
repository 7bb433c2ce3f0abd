"""A network <-> the bytes of ``weights.safetensors``, held against each other before they are used.

Reference: https://github.com/huggingface/safetensors, "Format"
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from app.captioner import documents
from app.captioner.network import Architecture, Network

MOST_PARAMETERS = 2**28
_MOST_HEADER_BYTES = 2**20
_LENGTH_BYTES = 8
_METADATA = "__metadata__"
_DTYPES: Final = {True: ("F16", "F32"), False: ("I64",)}  # by whether it is a floating point number


def written(network: Network) -> bytes:
    """Write the weights down: matrices and kernels in half precision.

    Biases and batch-norm statistics stay exact.
    """
    state = {
        name: (tensor.half() if tensor.ndim > 1 else tensor).detach().cpu().contiguous()
        for name, tensor in network.state_dict().items()
    }
    return save_tensors(state)


def empty_network(architecture: Architecture) -> Network:
    """Build a network without memory for its weights.

    Raises:
        ValueError: it would have more than ``MOST_PARAMETERS``.
    """
    with torch.device("meta"):
        network = Network(architecture)
    found = sum(tensor.numel() for tensor in network.state_dict().values())
    if found > MOST_PARAMETERS:
        raise ValueError(f"the architecture has {found} parameters, at most {MOST_PARAMETERS} run")
    return network


def most_bytes(network: Network) -> int:
    """Give how large a file can be that holds the weights of this network."""
    tensors: Iterable[Tensor] = network.state_dict().values()
    own = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return _LENGTH_BYTES + _MOST_HEADER_BYTES + own


def filled(network: Network, content: bytes) -> Network:
    """Let an empty network take over the tensors of a file, as float32, for inference.

    Raises:
        ValueError: the file holds other tensors, or numbers that are none.
    """
    expected = network.state_dict()
    _check_shapes(_shapes(_header(content)), expected)
    try:
        tensors = load_tensors(content)
    except SafetensorError as error:
        raise ValueError(f"it is not a safetensors file: {error}") from None
    single = {name: _single(name, tensor) for name, tensor in tensors.items()}
    network.load_state_dict(single, assign=True)
    return network.eval().requires_grad_(requires_grad=False)


def _header(content: bytes) -> dict[str, Any]:
    """Read what the file says of itself, before anything is made of it."""
    size = int.from_bytes(content[:_LENGTH_BYTES], "little")
    if not 0 < size <= min(_MOST_HEADER_BYTES, len(content) - _LENGTH_BYTES):
        raise ValueError("it is not a safetensors file: its header does not fit")
    header = content[_LENGTH_BYTES : _LENGTH_BYTES + size]
    try:
        parsed = documents.parse(header, most_values=size)
    except ValueError as error:
        raise ValueError(f"it is not a safetensors file: {error}") from None
    if not isinstance(parsed, dict):
        raise ValueError("it is not a safetensors file: its header is no object")  # noqa: TRY004
    return {name: about for name, about in parsed.items() if name != _METADATA}


def _shapes(header: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Give dtype and shape of every tensor, as the file names them."""
    try:
        return {name: (each["dtype"], tuple(each["shape"])) for name, each in header.items()}
    except (KeyError, TypeError):
        raise ValueError("it is not a safetensors file: a tensor has no dtype or shape") from None


def _check_shapes(found: Mapping[str, tuple[Any, Any]], expected: Mapping[str, Tensor]) -> None:
    for name in sorted(expected.keys() | found.keys()):
        dtype, shape = found.get(name, (None, None))
        wanted = tuple(expected[name].shape) if name in expected else None
        if shape != wanted:
            raise ValueError(
                f"it has {name[:100]} of shape {str(shape)[:100]}, the architecture expects "
                f"{wanted}: restore the pair or retrain"
            )
        dtypes = _DTYPES[expected[name].is_floating_point()]
        if dtype not in dtypes:
            raise ValueError(f"it has {name} in {str(dtype)[:100]}, expected {' or '.join(dtypes)}")


def _single(name: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    single = tensor.float()
    with np.errstate(all="ignore"):  # numpy's sum: torch would wake its threads for each tensor
        finite = np.isfinite(single.numpy().sum())
    if not finite:
        raise ValueError(f"{name} holds NaN, infinity, or as good as that: train or copy it again")
    return single
