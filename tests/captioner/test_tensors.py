"""A file of tensors from a stranger: what it says of itself is checked before it is believed."""

import json
import struct

import numpy as np
import pytest
from safetensors.numpy import save

from app.captioner import tensors

TENSORS = {
    "bias": np.arange(6, dtype=np.float32),
    "matrix": np.arange(12, dtype=np.float16).reshape(3, 4),
    "count": np.array(7),
    "bytes": np.arange(5, dtype=np.uint8),
}
WRITTEN = save(TENSORS)


def with_header(content, change):
    """Change what a file says of itself."""
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    change(header)
    told = json.dumps(header).encode()
    return struct.pack("<Q", len(told)) + told + content[8 + size :]


def test_tensors_are_found_where_they_lie():
    places = tensors.layout(WRITTEN)
    assert places.keys() == TENSORS.keys()
    for name, expected in TENSORS.items():
        found = tensors.array(WRITTEN, places[name])
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        assert np.array_equal(found, expected)


def test_what_the_file_says_beside_its_tensors_is_ignored():
    assert tensors.layout(save(TENSORS, {"format": "pt"})).keys() == TENSORS.keys()


@pytest.mark.parametrize("size", [0, 2**20 + 1, 100_000_000, 2**63, 2**64 - 1])
def test_a_header_that_does_not_fit_is_refused(size):
    content = struct.pack("<Q", size) + WRITTEN[8:] + bytes(2**21)
    with pytest.raises(ValueError, match="its header does not fit"):
        tensors.layout(content)


@pytest.mark.parametrize("content", [b"", b"\x00" * 7, struct.pack("<Q", 9) + b"{}"])
def test_a_file_that_ends_before_its_header_is_refused(content):
    with pytest.raises(ValueError, match="its header does not fit"):
        tensors.layout(content)


@pytest.mark.parametrize(
    "header",
    [b"[]", b"7", b"{", b"[" * 9999, b'{"a": 1}', b'{"a": {"shape": 1}}', b'{"a":{},"a":{}}'],
)
def test_a_header_that_is_none_is_refused(header):
    with pytest.raises(ValueError, match="is not a safetensors file"):
        tensors.layout(struct.pack("<Q", len(header)) + header)


def refused(change):
    """Expect a short reason."""
    with pytest.raises(ValueError, match="is not a safetensors file") as refusal:
        tensors.layout(with_header(WRITTEN, change))
    assert len(str(refusal.value)) < 300


@pytest.mark.parametrize(
    "shape", [[10**18], [-6], [2**40, 2**40], [7], [5], [], "6", [[6]], None, [6.0], {"a": 1}]
)
def test_a_shape_that_its_bytes_do_not_have_is_refused(shape):
    refused(lambda header: header["bias"].update(shape=shape))


@pytest.mark.parametrize(
    "dtype", ["F64", "BF16", "I32", "BOOL", "F8_E4M3", "F16", "x" * 9999, 7, [], None]
)
def test_only_types_that_we_write_are_read(dtype):
    refused(lambda header: header["bias"].update(dtype=dtype))


@pytest.mark.parametrize(
    "offsets", [[0, 2**62], [5, 1], [0, 1], "x", [-1, 3], [0], [0, 24, 48], [0.0, 24.0], None]
)
def test_offsets_that_lie_are_refused(offsets):
    refused(lambda header: header["bias"].update(data_offsets=offsets))


def test_tensors_that_lie_upon_each_other_are_refused():
    def change(header):
        header["again"] = dict(header["bias"])

    refused(change)


def test_bytes_that_no_tensor_owns_are_refused():
    refused(lambda header: header.pop("bytes"))
    refused(lambda header: header.pop("matrix"))
    with pytest.raises(ValueError, match="its header speaks of"):
        tensors.layout(WRITTEN + b"x")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        tensors.layout(WRITTEN[:-1])


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["bias", "matrix"])
def test_numbers_that_are_none_are_refused(name, number):
    changed = TENSORS[name].copy()
    changed.flat[-1] = number
    content = save({**TENSORS, name: changed})
    with pytest.raises(ValueError, match=f"{name} holds NaN or infinity"):
        tensors.check_finite(content, tensors.layout(content))


def test_the_largest_numbers_are_numbers():
    largest = {
        kind: np.array([np.finfo(kind).max, np.finfo(kind).min], kind) for kind in ("f2", "f4")
    }
    content = save(largest)
    tensors.check_finite(content, tensors.layout(content))
