"""Weights from a stranger, held against the network before anything is made of them."""

import json
import struct

import pytest
import torch
from safetensors.torch import load, save

from app.captioner import weights
from app.captioner.network import Architecture
from support.tiny import tiny_network

NAME = "decoder.words.bias"


@pytest.fixture(scope="module")
def network():
    return tiny_network()


@pytest.fixture(scope="module")
def written(network):
    return weights.written(network)


def filled(network, content):
    return weights.filled(weights.empty_network(network.architecture), content)


def with_header(content, change):
    """Change what a file says of itself."""
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    change(header)
    told = json.dumps(header).encode()
    return struct.pack("<Q", len(told)) + told + content[8 + size :]


def test_what_was_written_fills_an_empty_network(network, written):
    assert len(written) <= weights.most_bytes(weights.empty_network(network.architecture))
    found = filled(network, written).state_dict()
    for name, tensor in network.state_dict().items():
        expected = tensor.half().float() if tensor.ndim > 1 else tensor
        torch.testing.assert_close(found[name], expected, rtol=0, atol=0)


def test_a_network_of_too_many_parameters_is_refused():
    large = Architecture(
        encoder="vgg16", features="vector", decoder="merge", words=9, hidden_width=6000
    )
    with pytest.raises(ValueError, match=r"\d+ parameters, at most 268435456 run"):
        weights.empty_network(large)


@pytest.mark.parametrize("size", [0, 2**20 + 1, 100_000_000, 2**63, 2**64 - 1])
def test_a_header_that_does_not_fit_is_refused(network, written, size):
    content = struct.pack("<Q", size) + written[8:] + bytes(2**21)
    with pytest.raises(ValueError, match="its header does not fit"):
        filled(network, content)


@pytest.mark.parametrize("content", [b"", b"\x00" * 7, struct.pack("<Q", 9) + b"{}"])
def test_a_file_that_ends_before_its_header_is_refused(network, content):
    with pytest.raises(ValueError, match="its header does not fit"):
        filled(network, content)


@pytest.mark.parametrize(
    "header",
    [b"[]", b"7", b"{", b"[" * 9999, b'{"a": 1}', b'{"a": {"shape": 1}}', b'{"a":{},"a":{}}'],
)
def test_a_header_that_is_none_is_refused(network, header):
    with pytest.raises(ValueError, match="is not a safetensors file"):
        filled(network, struct.pack("<Q", len(header)) + header)


@pytest.mark.parametrize("shape", [[10**18], [17], [], "16", [[16]], None, [16.5], {"a": 1}])
def test_a_shape_is_compared_before_memory_is_taken(network, written, monkeypatch, shape):
    monkeypatch.setattr(weights, "load_tensors", lambda _: pytest.fail("it was loaded"))
    content = with_header(written, lambda header: header[NAME].update(shape=shape))
    with pytest.raises(ValueError, match=r"of shape|has no dtype or shape"):
        filled(network, content)


@pytest.mark.parametrize(
    "dtype", ["F64", "BF16", "I32", "BOOL", "F8_E4M3", "x" * 9999, 7, [], None]
)
def test_only_types_that_we_write_are_loaded(network, written, monkeypatch, dtype):
    monkeypatch.setattr(weights, "load_tensors", lambda _: pytest.fail("it was loaded"))
    content = with_header(written, lambda header: header[NAME].update(dtype=dtype))
    with pytest.raises(ValueError, match="expected F16 or F32") as refusal:
        filled(network, content)
    assert len(str(refusal.value)) < 300


@pytest.mark.parametrize("offsets", [[0, 2**62], [5, 1], [0, 1], "x", [-1, 3]])
def test_offsets_that_lie_are_refused(network, written, offsets):
    content = with_header(written, lambda header: header[NAME].update(data_offsets=offsets))
    with pytest.raises(ValueError, match="is not a safetensors file"):
        filled(network, content)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", [NAME, "decoder.words.weight"])
def test_numbers_that_are_none_are_refused(network, written, name, number):
    tensors = load(written)
    tensors[name].view(-1)[-1] = number
    with pytest.raises(ValueError, match=f"{name} holds NaN, infinity"):
        filled(network, save(tensors))
