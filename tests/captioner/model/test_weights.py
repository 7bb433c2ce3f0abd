"""Weights from a stranger, held against the network before anything is made of them."""

import json
import struct

import pytest
import torch
from safetensors.torch import load, save

from app.captioner import tensors
from app.captioner.architecture import Architecture
from app.captioner.model import weights
from support.tiny import tiny_network

NAME = "decoder.words.bias"


@pytest.fixture(scope="module")
def network():
    return tiny_network()


@pytest.fixture(scope="module")
def written(network):
    return weights.written(network, b"numbers of the graphs")


def refused(network, content, reason):
    """Expect a short reason."""
    with pytest.raises(ValueError, match=reason) as refusal:
        weights.network_from(content, network.architecture)
    assert len(str(refusal.value)) < 300


def test_what_was_written_is_the_network(network, written):
    found = weights.network_from(written, network.architecture)
    assert not found.training
    assert not any(parameter.requires_grad for parameter in found.parameters())
    for name, tensor in network.state_dict().items():
        expected = tensor.half().float() if tensor.ndim > 1 else tensor
        torch.testing.assert_close(found.state_dict()[name], expected, rtol=0, atol=0)


def test_what_graphs_need_lies_beside_the_weights(written):
    place = tensors.layout(written)[tensors.GRAPH_CONSTANTS]
    assert tensors.array(written, place).tobytes() == b"numbers of the graphs"


def test_a_network_of_too_many_parameters_is_refused(network, written):
    large = Architecture(
        encoder="vgg16", features="vector", decoder="merge", words=9, hidden_width=6000
    )
    with pytest.raises(ValueError, match=r"\d+ parameters, at most 268435456 run"):
        weights.network_from(written, large)


@pytest.fixture
def unloaded(monkeypatch):
    """See that nothing is made of a file that is refused."""
    monkeypatch.setattr(weights, "load_tensors", lambda _: pytest.fail("it was loaded"))


def changed(written, **tensors):
    return save({**load(written), **tensors})


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize("shape", [(17,), (), (16, 1), (0,)])
def test_a_shape_is_compared_before_memory_is_taken(network, written, shape):
    refused(network, changed(written, **{NAME: torch.zeros(shape)}), r"of shape .* expects \(16,\)")


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_a_weight_is_a_floating_point_number(network, written, dtype):
    other = torch.zeros(16, dtype=dtype)
    refused(network, changed(written, **{NAME: other}), "expected F16 or F32")


@pytest.mark.usefixtures("unloaded")
def test_a_count_is_an_integer(network, written):
    (name, *_) = (name for name in load(written) if name.endswith("num_batches_tracked"))
    refused(network, changed(written, **{name: torch.zeros(())}), "in F32, expected I64")


@pytest.mark.usefixtures("unloaded")
def test_a_tensor_that_is_missing_or_of_no_network_is_refused(network, written):
    state = load(written)
    del state[NAME]
    refused(network, save(state), f"has {NAME} of shape None")
    refused(network, changed(written, more=torch.zeros(1)), "has more of shape .* expects None")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", [NAME, "decoder.words.weight"])
def test_numbers_that_are_none_are_refused(network, written, name, number):
    state = load(written)
    state[name].view(-1)[-1] = number
    refused(network, save(state), f"{name} holds NaN or infinity")


def test_a_file_that_is_none_is_refused(network, written):
    (size,) = struct.unpack("<Q", written[:8])
    header = json.loads(written[8 : 8 + size])
    header[NAME]["data_offsets"][0] += 4
    told = json.dumps(header).encode()
    content = struct.pack("<Q", len(told)) + told + written[8 + size :]
    refused(network, content, "is not a safetensors file")
