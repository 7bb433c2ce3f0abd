"""The graphs of a checkpoint: OpenVINO's IR as text, its numbers in ``weights.safetensors``.

A graph names the place of each of its constants in one file of numbers. That file is the one of the
weights, so every weight lies in a checkpoint only once, and no torch is needed to run it.

Reference: https://docs.openvino.ai, "OpenVINO Intermediate Representation"
"""

import math
import re
from collections.abc import Mapping
from typing import Final, NamedTuple
from xml.etree import ElementTree as ET  # S405: the text has no entities, see `check`

from app.captioner.tensors import Place

ENCODE, STEP, ENCODE_INT8 = "graphs/encode.xml", "graphs/step.xml", "graphs/encode-int8.xml"
"""From pixels to what the search needs of an image; a step of the decoder; the first in int8."""
READ = "graphs/read.xml"
"""In a network of clips the first ends with the features of a frame. This one goes on from those of
all frames of a clip."""
NAMES: Final = (ENCODE, READ, STEP, ENCODE_INT8)

_MOST_LAYERS = 10_000
_ITEM_BYTES: Final = {
    "f32": 4,
    "f16": 2,
    "i64": 8,
    "i32": 4,
    "u8": 1,
    "i8": 1,
    "boolean": 1,
}
_KNOWN: Final = frozenset(
    [
        "Parameter",
        "Result",
        "Const",
        "Convert",
        "Add",
        "Subtract",
        "Tile",
        "Multiply",
        "Divide",
        "Power",
        "Sqrt",
        "MatMul",
        "Convolution",
        "GroupConvolution",
        "BatchNormInference",
        "MaxPool",
        "AvgPool",
        "AdaptiveAvgPool",
        "ReduceMean",
        "MVN",
        "Relu",
        "Clamp",
        "Sigmoid",
        "HSigmoid",
        "HSwish",
        "Swish",
        "Gelu",
        "Tanh",
        "SoftMax",
        "Softmax",
        "Concat",
        "Split",
        "VariadicSplit",
        "Slice",
        "StridedSlice",
        "Gather",
        "Reshape",
        "Squeeze",
        "Unsqueeze",
        "Transpose",
        "ShapeOf",
        "Broadcast",
        "FakeQuantize",
        "ReduceSum",
        "Maximum",
        "Minimum",
        "ReLU",
        "SoftMax",
        "HSigmoid",
    ]
)
"""The operators of our networks: none that loops, branches, or knows files."""
_OFFSET = re.compile(r'offset="([@+])([^"]*)"')


class Template(NamedTuple):
    """A graph whose constants have no place yet.

    Attributes:
        text: IR; ``offset="@NAME"`` stands for the place of a tensor, ``offset="+N"`` for the N-th
            byte of ``constants``.
        constants: what the graph needs beside the weights.
    """

    text: str
    constants: bytes


def placed(template: Template, places: Mapping[str, Place], constants_at: int) -> bytes:
    """Give every constant its place in a file of numbers.

    Args:
        template: the graph.
        places: of the tensors, by name.
        constants_at: where in the file ``template.constants`` begin.
    """

    def offset(found: re.Match[str]) -> str:
        kind, what = found.groups()
        return f'offset="{places[what].offset if kind == "@" else constants_at + int(what)}"'

    return _OFFSET.sub(offset, template.text).encode()


def check(text: bytes, numbers: int) -> None:
    """See that a stranger's graph consists of known operators and looks at its own file alone.

    Args:
        text: IR.
        numbers: bytes of the file that its constants lie in.

    Raises:
        ValueError: what is wrong with it.
    """
    if not text.isascii() or b"\0" in text:
        raise ValueError("it has characters that no graph needs")  # in others entities could hide
    if b"<!" in text:
        raise ValueError("a graph declares no entities")
    try:
        layers = ET.fromstring(text).findall("./layers/layer")  # noqa: S314 - see above
    except ET.ParseError as error:
        raise ValueError(f"it is no XML: {error}") from None
    if not 0 < len(layers) <= _MOST_LAYERS:
        raise ValueError(f"it has {len(layers)} layers, expected at most {_MOST_LAYERS}")
    for layer in layers:
        kind = str(layer.get("type"))
        if kind not in _KNOWN or not str(layer.get("version")).startswith("opset"):
            raise ValueError(f"it has a layer of the kind {kind[:50]!r}")
        if kind == "Const":
            _check_constant(layer.find("data"), numbers)


def _check_constant(data: "ET.Element | None", numbers: int) -> None:
    try:
        if data is None:
            raise KeyError("data")  # noqa: TRY301
        about = data.attrib
        offset, size = int(about["offset"]), int(about["size"])
        dims = [int(each) for each in about["shape"].split(",") if each.strip()]
        nothing_takes_one = 1
        expected = math.prod(dims) * _ITEM_BYTES[about["element_type"]] or nothing_takes_one
    except (KeyError, ValueError):
        raise ValueError("a constant has no type, shape or place") from None
    inside = offset >= 0 and size >= 0 and offset + size <= numbers
    if min(dims, default=0) < 0 or size != expected or not inside:
        raise ValueError("a constant lies outside its file, or has another size than its shape")
