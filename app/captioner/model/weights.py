"""A network <-> the bytes of ``weights.safetensors``."""

from collections.abc import Mapping

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from app.captioner import tensors
from app.captioner.architecture import Architecture
from app.captioner.model.network import Network
from app.captioner.tensors import GRAPH_CONSTANTS, MOST_PARAMETERS, Place

_FLOATS, _INTEGERS = ("F16", "F32"), ("I64",)


def written(network: Network, constants: bytes = b"") -> bytes:
    """Write the weights down: matrices and kernels in half precision.

    Biases and batch-norm statistics stay exact.

    Args:
        network: anywhere.
        constants: what the graphs of the checkpoint need beside the weights.
    """
    state = {name: rounded(tensor) for name, tensor in network.state_dict().items()}
    state[GRAPH_CONSTANTS] = torch.frombuffer(bytearray(constants or b"\0"), dtype=torch.uint8)
    return save_tensors(state)


def rounded(tensor: Tensor) -> Tensor:
    """Give a tensor as a checkpoint holds it."""
    return (tensor.half() if tensor.ndim > 1 else tensor).detach().cpu().contiguous()


def network_from(content: bytes, architecture: Architecture) -> Network:
    """Build the network of a checkpoint: float32, on the CPU, for inference.

    Args:
        content: of ``weights.safetensors``.
        architecture: what the manifest says of it.

    Raises:
        ValueError: the file holds other tensors, or numbers that are none.
    """
    network = _empty(architecture)
    places = tensors.layout(content)
    _check_shapes(places, network.state_dict())
    tensors.check_finite(content, places)
    state = load_tensors(content)
    del state[GRAPH_CONSTANTS]
    single = {name: _single(tensor) for name, tensor in state.items()}
    network.load_state_dict(single, assign=True)
    return network.eval().requires_grad_(requires_grad=False)


def _empty(architecture: Architecture) -> Network:
    """Build a network without memory for its weights."""
    with torch.device("meta"):
        network = Network(architecture)
    found = sum(tensor.numel() for tensor in network.state_dict().values())
    if found > MOST_PARAMETERS:
        raise ValueError(f"the architecture has {found} parameters, at most {MOST_PARAMETERS} run")
    return network


def _check_shapes(found: Mapping[str, Place], expected: Mapping[str, Tensor]) -> None:
    for name in sorted(expected.keys() | (found.keys() - {GRAPH_CONSTANTS})):
        shape = found[name].shape if name in found else None
        wanted = tuple(expected[name].shape) if name in expected else None
        if shape != wanted:
            raise ValueError(
                f"it has {name[:100]} of shape {str(shape)[:100]}, the architecture expects "
                f"{wanted}: restore the pair or retrain"
            )
        dtypes = _FLOATS if expected[name].is_floating_point() else _INTEGERS
        if found[name].dtype not in dtypes:
            raise ValueError(
                f"it has {name} in {found[name].dtype}, expected {' or '.join(dtypes)}"
            )


def _single(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor
