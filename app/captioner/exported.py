"""An encoder as ONNX Runtime computes it: float32, on a CPU.

Called from torch, every convolution of oneDNN describes itself anew, which takes a tenth of a
millisecond before it begins, as long as many a one of MobileNetV2 takes. ONNX Runtime plans the
whole encoder once: what lies where, what is fused with what, in blocks of channels that suit the
CPU. A result is the same bit by bit for any number of images and of cores.

B images, C channels, H/W pixels
"""

import operator
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, fx, nn
from torchvision.ops import stochastic_depth

from app.captioner.errors import OutOfMemory
from app.captioner.folding import folded_encoder
from app.captioner.network import Encoder

# Its wheels open connections to their maker and keep a device id and a database in the home
# directory, from the import on; only what stands in the environment then keeps them from it.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime

_OPERATORS = 18  # the version of ONNX's operators, and of its files, that we write
_FILES = 9
_IMAGES_AT_ONCE = 8
"""What a session had to take for its largest batch, it keeps."""
_FULL = "Failed to allocate memory"
_SILENT = 4


class Unknown(Exception):
    """An encoder has a layer that we cannot write down."""


def exported_encoder(encoder: Encoder) -> Encoder:
    """Prepare an encoder for inference on a CPU.

    Args:
        encoder: on the CPU, float32; it stays as it is.

    Returns:
        An encoder of the same interface that cannot be trained or saved.

    Raises:
        Unknown: it has layers that this module does not know.
    """
    return _Exported(folded_encoder(encoder, torch.float32))


class _Exported(Encoder):
    """What ONNX Runtime computes, on as many cores as torch may use.

    All of it, from bytes on: helpers of torch that wait for more after a first operation of its own
    would hold the cores while those of ONNX Runtime need them.
    """

    def __init__(self, folded: Encoder) -> None:
        nn.Module.__init__(self)
        self.grid, self.width = folded.grid, folded.width
        self._model = _written(folded)
        self._of_cores: dict[int, onnxruntime.InferenceSession] = {}

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Turn images into features, as the encoder does of which this was made."""
        session = self._with(torch.get_num_threads())
        try:
            pieces = [
                session.run(None, {"images": piece.numpy()})[0]
                for piece in torch.split(images_BCHW, _IMAGES_AT_ONCE)
            ]
        except Exception as error:
            if _FULL in str(error):
                raise OutOfMemory("the batch does not fit into memory") from None
            raise
        features = torch.from_numpy(np.concatenate(pieces))
        return features.flatten(1, 2) if self.grid else features.unsqueeze(1)

    def _with(self, cores: int) -> onnxruntime.InferenceSession:
        if cores not in self._of_cores:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = cores
            # Helpers that spin on after the encoder take the cores from the search.
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            options.log_severity_level = _SILENT  # what goes wrong is raised
            self._of_cores[cores] = onnxruntime.InferenceSession(
                self._model, options, providers=["CPUExecutionProvider"]
            )
        return self._of_cores[cores]


# --- writing it down ----------------------------------------------------------------------------


def _written(encoder: Encoder) -> bytes:
    """Write an encoder down as an ONNX model from ``images`` to ``features``."""
    writer = _Writer(fx.symbolic_trace(encoder.blocks))
    pixels = writer.note("Cast", "images", to=onnx.TensorProto.FLOAT)
    pixels = writer.note("Div", pixels, writer.constant(255.0))
    pixels = writer.note("Sub", pixels, writer.constant(encoder.mean))
    pixels = writer.note("Div", pixels, writer.constant(encoder.std))
    maps = writer.run(pixels)
    if encoder.grid:
        writer.note_as("features", "Transpose", maps, perm=(0, 2, 3, 1))
    else:
        writer.note_as("features", "Identity", maps)
    images = helper.make_tensor_value_info("images", onnx.TensorProto.UINT8, ["B", 3, "H", "W"])
    features = helper.make_tensor_value_info("features", onnx.TensorProto.FLOAT, None)
    graph = helper.make_graph(writer.nodes, "encoder", [images], [features], writer.constants)
    operators = [helper.make_opsetid("", _OPERATORS)]
    model = helper.make_model(graph, opset_imports=operators, ir_version=_FILES)
    written: bytes = model.SerializeToString()
    return written


class _Writer(fx.Interpreter):
    """Walks through a traced network with names in place of tensors, and notes what it meets."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ARG002
        module = self.fetch_attr(target)
        return _known(_LAYERS, type(module))(self, args[0], module)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ARG002
        return _known(_FUNCTIONS, target)(self, *args)

    def call_method(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ARG002
        raise Unknown(target)

    def get_attr(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ARG002
        raise Unknown(target)

    def note(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Note one operation; the name of its result."""
        return self.note_as(f"n{len(self.nodes)}", kind, *inputs, **attributes)

    def note_as(self, name: str, kind: str, *inputs: str, **attributes: Any) -> str:
        """Note one operation whose result has this name."""
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def constant(self, value: Tensor | float) -> str:
        """Note a constant; its name."""
        array = np.asarray(value.detach() if isinstance(value, Tensor) else np.float32(value))
        self.constants.append(numpy_helper.from_array(array, f"c{len(self.constants)}"))
        return str(self.constants[-1].name)

    def parameters(self, layer: nn.Conv2d | nn.Linear) -> list[str]:
        """Note weight and bias."""
        both = (layer.weight, layer.bias)
        return [self.constant(each) for each in both if each is not None]


def _known(table: dict[Any, Any], kind: Any) -> Any:
    if kind not in table:
        raise Unknown(kind)
    return table[kind]


def _convolution(writer: _Writer, maps: str, layer: nn.Conv2d) -> str:
    if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        raise Unknown(layer)
    return writer.note(
        "Conv",
        maps,
        *writer.parameters(layer),
        kernel_shape=layer.kernel_size,
        strides=layer.stride,
        pads=layer.padding * 2,
        dilations=layer.dilation,
        group=layer.groups,
    )


def _linear(writer: _Writer, rows: str, layer: nn.Linear) -> str:
    return writer.note("Gemm", rows, *writer.parameters(layer), transB=1)


def _largest(writer: _Writer, maps: str, layer: nn.MaxPool2d) -> str:
    window, stride, padding = (
        each if isinstance(each, tuple) else (each, each)
        for each in (layer.kernel_size, layer.stride, layer.padding)
    )
    if layer.dilation != 1:
        raise Unknown(layer)
    return writer.note(
        "MaxPool",
        maps,
        kernel_shape=window,
        strides=stride,
        pads=padding * 2,
        ceil_mode=int(layer.ceil_mode),
    )


def _mean(writer: _Writer, maps: str, layer: nn.AdaptiveAvgPool2d) -> str:
    if layer.output_size not in (1, (1, 1)):
        raise Unknown(layer)
    return writer.note("GlobalAveragePool", maps)


def _flat(writer: _Writer, maps: str, layer: nn.Flatten) -> str:
    if (layer.start_dim, layer.end_dim) != (1, -1):
        raise Unknown(layer)
    return writer.note("Flatten", maps)


def _up_to_six(writer: _Writer, maps: str, layer: nn.ReLU6) -> str:  # noqa: ARG001
    return writer.note("Clip", maps, writer.constant(0.0), writer.constant(6.0))


def _swish(writer: _Writer, maps: str, layer: nn.SiLU) -> str:  # noqa: ARG001
    return writer.note("Mul", maps, writer.note("Sigmoid", maps))


def _hard_sigmoid(writer: _Writer, maps: str, layer: nn.Hardsigmoid) -> str:  # noqa: ARG001
    return writer.note("HardSigmoid", maps, alpha=1 / 6, beta=0.5)


def _as_it_is(writer: _Writer, maps: str, *rest: Any) -> str:  # noqa: ARG001
    return maps


def _plain(kind: str) -> Callable[..., str]:
    return lambda writer, maps, layer: writer.note(kind, maps)  # noqa: ARG005


def _of_two(kind: str) -> Callable[..., str]:
    def written(writer: _Writer, one: Any, other: Any) -> str:
        if not (isinstance(one, str) and isinstance(other, str)):  # a number, not maps
            raise Unknown(kind)
        return writer.note(kind, one, other)

    return written


_LAYERS: dict[type[nn.Module], Callable[..., str]] = {
    nn.Conv2d: _convolution,
    nn.Linear: _linear,
    nn.MaxPool2d: _largest,
    nn.AdaptiveAvgPool2d: _mean,
    nn.Flatten: _flat,
    nn.Dropout: _as_it_is,
    nn.ReLU: _plain("Relu"),
    nn.ReLU6: _up_to_six,
    nn.Sigmoid: _plain("Sigmoid"),
    nn.SiLU: _swish,
    nn.Hardsigmoid: _hard_sigmoid,
    nn.Hardswish: _plain("HardSwish"),
}
_FUNCTIONS: dict[Any, Callable[..., str]] = {
    operator.add: _of_two("Add"),
    operator.mul: _of_two("Mul"),
    stochastic_depth: _as_it_is,
}
