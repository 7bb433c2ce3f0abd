"""A network -> the graphs that run without torch; see `app.captioner.graphs`.

OpenVINO converts the torch modules as they are. What graphs look like hangs on the architecture
alone, so they are made once of a network full of random numbers, in which every weight can be told
from every other by its bytes.

B images, C channels, H/W pixels, K beams, R regions, V words, G gates of an LSTM, F frames of a
clip, N frames of all clips
"""

import re
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import openvino
import torch
from openvino import opset13
from openvino._offline_transformations import apply_moc_transformations
from openvino.passes import ConstantFolding, Manager
from torch import Tensor, nn

from app.captioner.architecture import Architecture
from app.captioner.graphs import ENCODE, READ, STEP, Template
from app.captioner.image.decode import Pixels
from app.captioner.model.network import Decoder, DecoderState, Encoder, Network
from app.captioner.model.weights import rounded

_TRACED_PX = 64  # sides stay free: a graph serves every size of image
_FRAGILE = 0.005
"""A convolution stays exact if rounding its weights moves a result by so much of its norm.

In an EfficientNet-Lite1 these are some twenty of 41, beside those by depth; more in int8 were no
faster."""
_PROBED_IMAGES = 16
_CONVOLUTIONS = ("Convolution", "GroupConvolution")
_LARGEST_INT8 = 127
_LEAST_WEIGHT_BYTES = 8  # a single number may be one of the graph's own
_CONST = re.compile(r'<layer id="\d+" name="([^"]*)" type="Const".*?</layer>', re.DOTALL)
_NAMED = re.compile(r'offset="@([^"]*)"')
_LOOKED_UP = {"decoder.embedding.weight", "decoder.input_gates.weight", "decoder.input_gates.bias"}
"""What of the LSTM is a table of words, see `engines.cpu`."""
_PLACE = re.compile(r'offset="(\d+)"')


class _Encode(nn.Module):
    """Pixels -> what depends on the image alone, and the state before the first word."""

    def __init__(self, encoder: Encoder, decoder: Decoder) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, images_BHWC: Tensor) -> tuple[Tensor, ...]:
        features_BRD = self.encoder(images_BHWC.permute(0, 3, 1, 2))
        state = self.decoder.start(features_BRD, 1)
        told = () if self.encoder.classes is None else (self._class_probabilities(features_BRD),)
        return (*state.rows, *state.image, *told)

    def _class_probabilities(self, features_BRD: Tensor) -> Tensor:
        return self.encoder.class_logits(features_BRD).softmax(-1)


class _EncodeFrames(nn.Module):
    """Pixels -> the features of frames."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images_NHWC: Tensor) -> Tensor:
        features_NRD: Tensor = self.encoder(images_NHWC.permute(0, 3, 1, 2))
        return features_NRD


class _Read(nn.Module):
    """The features of the frames of clips -> what `_Encode` gives of images."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, features_BFRD: Tensor) -> tuple[Tensor, ...]:
        state = self.decoder.start(features_BFRD, 1)
        return (*state.rows, *state.image)


class _Step(nn.Module):
    """What the LSTM takes of each word, and its state -> word scores, and its next state."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(
        self, gates_BKG: Tensor, hidden_BKH: Tensor, cell_BKH: Tensor, *image: Tensor
    ) -> tuple[Tensor, ...]:
        state = DecoderState(image, (hidden_BKH, cell_BKH))
        logits_BKV, state, attention_BKR = self.decoder.step_from(gates_BKG, state)
        paid = () if attention_BKR is None else (attention_BKR,)
        return (logits_BKV, *state.rows, *paid)


class _WordStep(nn.Module):
    """Words and the state of an LSTM -> word scores, and its next state."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(
        self, words_BK: Tensor, hidden_BKH: Tensor, cell_BKH: Tensor, *image: Tensor
    ) -> tuple[Tensor, ...]:
        state = DecoderState(image, (hidden_BKH, cell_BKH))
        logits_BKV, state, attention_BKR = self.decoder.step(words_BK, state)
        paid = () if attention_BKR is None else (attention_BKR,)
        return (logits_BKV, *state.rows, *paid)


def encode_module(network: Network) -> nn.Module:
    """Give a module from uint8 ``(B, H, W, 3)`` to hidden state, cell and what images are.

    In a network of clips it gives the features of frames.
    """
    if network.architecture.frames:
        return _EncodeFrames(network.encoder).eval()
    return _Encode(network.encoder, network.decoder).eval()


def step_module(network: Network) -> nn.Module:
    """Give a module from words ``(B, K)``, hidden state, cell and images to word scores."""
    return _WordStep(network.decoder).eval()


@lru_cache(maxsize=8)
def templates(architecture: Architecture) -> dict[str, Template]:
    """Give the graphs of an architecture by their names in a checkpoint.

    They compute in float32; weights are told from each other later, so they have no numbers yet.
    """
    network = _marked(architecture)
    names = _names(network)
    made = {name: _template(model, names) for name, model in _models(network, architecture).items()}
    _check_complete(made.values(), names.values())
    return made


def int8_template(network: Network, squares: Sequence[Pixels]) -> Template:
    """Quantise the encoder: weights and activations to 8 bits, by what these images show.

    Args:
        network: with the weights of the checkpoint, rounded as there.
        squares: some hundred images as the network sees them, uint8 ``(S, S, 3)``.

    Reference: Jacob et al. 2018, "Quantization and training of neural networks for efficient
    integer-arithmetic-only inference"; NNCF's post-training quantisation.
    """
    import nncf  # noqa: PLC0415 - of the extra `train`, and heavy

    folded = _converted(encode_module(network), (_traced_images(),))
    weights = [_weight(each) for each in _convolutions(folded)]
    apply_moc_transformations(folded, cf=False)  # batch norm goes into the weights
    side = squares[0].shape[0]
    folded.reshape({0: openvino.PartialShape([-1, side, side, 3])})
    exact = _fragile(folded, np.stack(squares[:_PROBED_IMAGES]))
    quantised = nncf.quantize(
        folded,
        nncf.Dataset([square[None] for square in squares]),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(squares),
        fast_bias_correction=False,
        ignored_scope=nncf.IgnoredScope(names=exact, types=["MatMul", "MVN"], validate=False),
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            overflow_fix=nncf.OverflowFix.ENABLE  # AVX2 adds two products in 16 bits
        ),
    )
    for convolution, weight in zip(_convolutions(quantised), weights, strict=True):
        _share(convolution, weight)
    quantised.reshape({0: openvino.PartialShape([-1, -1, -1, 3])})
    return _template(quantised, _names(network))


def _convolutions(model: openvino.Model) -> list[Any]:
    return [each for each in model.get_ordered_ops() if each.get_type_name() in _CONVOLUTIONS]


def _weight(convolution: Any) -> Any:
    """Give the weight as numbers; None where it is computed, as one in 8 bits is."""
    node = convolution.input_value(1).get_node()
    return np.array(node.data) if node.get_type_name() == "Constant" else None


def _share(convolution: Any, weight: Any) -> None:
    """Write a weight into which batch norm went as the network's own one, times a scale."""
    folded = _weight(convolution)
    if folded is None or weight is None or folded.shape != weight.shape:
        return
    inner = tuple(range(folded.ndim - 3, folded.ndim))
    squares = np.maximum((weight**2).sum(inner, keepdims=True), np.finfo(np.float32).tiny)
    scale = (folded * weight).sum(inner, keepdims=True) / squares
    if np.allclose(weight * scale, folded, rtol=1e-4, atol=1e-6):
        shared = opset13.multiply(opset13.constant(weight), opset13.constant(scale))
        convolution.input(1).replace_source_output(shared.output(0))


def _fragile(model: openvino.Model, images_BHWC: Pixels) -> list[str]:
    """Give the convolutions to leave alone.

    These are the first, which sees pixels, those by depth, which are hardly faster in int8, and
    those that suffer most.
    """
    operators = model.get_ordered_ops()
    plain, grouped = _CONVOLUTIONS
    by_depth = [one for one in operators if one.get_type_name() == grouped]
    first, *others = (one for one in operators if one.get_type_name() == plain)
    expected = _results(model, images_BHWC)
    found = [one.get_friendly_name() for one in (first, *by_depth)]
    for convolution in others:
        weight = convolution.input_value(1)
        convolution.input(1).replace_source_output(_rounded(weight.get_node()).output(0))
        if _distance(_results(model, images_BHWC), expected) > _FRAGILE:
            found.append(convolution.get_friendly_name())
        convolution.input(1).replace_source_output(weight)
    return found


def _rounded(weight: Any) -> Any:
    """Round to 8 bits, each output channel by a scale of its own."""
    values = np.array(weight.data)
    channels = values.reshape(-1, *values.shape[-3:])  # of groups too
    scale = np.abs(channels).max(axis=(1, 2, 3), keepdims=True) / _LARGEST_INT8
    scale = np.maximum(scale, np.finfo(np.float32).tiny)
    return opset13.constant((np.rint(channels / scale) * scale).reshape(values.shape))


def _results(model: openvino.Model, images_BHWC: Pixels) -> list[Any]:
    results = openvino.Core().compile_model(model, "CPU")([images_BHWC])
    return [np.array(results[n]) for n in range(len(results))]


def _distance(found: Sequence[Any], expected: Sequence[Any]) -> float:
    """Give how far results are, as a part of their norm; of the result that is furthest."""
    pairs = zip(found, expected, strict=True)
    return max(
        float(np.linalg.norm(some - others) / np.linalg.norm(others))
        for some, others in pairs
        if others.any()
    )


def _marked(architecture: Architecture) -> Network:
    """Build a network all of whose tensors differ."""
    network = Network(architecture).eval()
    numbers = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=numbers).half())
    return network


def _check_complete(made: Iterable[Template], weights: "Iterable[_Weight]") -> None:
    """See that no weight was taken for a number of a graph's own: it would be a random one."""
    placed = {name for template in made for name in _NAMED.findall(template.text)}
    missing = {each.name for each in weights} - placed - _LOOKED_UP
    if missing:
        raise ValueError(f"no graph has {', '.join(sorted(missing))}: a network of other operators")


class _Weight(NamedTuple):
    """A weight in a checkpoint: its name, and whether it lies there in half precision."""

    name: str
    is_half: bool


_Names = dict[bytes, _Weight]


def _names(network: Network) -> _Names:
    """Give the weights of a network by their bytes in float32."""
    state = {name: rounded(tensor) for name, tensor in network.state_dict().items()}
    return {
        tensor.float().numpy().tobytes(): _Weight(name, tensor.dtype == torch.float16)
        for name, tensor in state.items()
        if tensor.is_floating_point()
    }


def _models(network: Network, about: Architecture) -> dict[str, openvino.Model]:
    encode = encode_module(network)
    models = {ENCODE: _converted(encode, (_traced_images(),))}
    models[ENCODE].reshape({0: openvino.PartialShape([-1, -1, -1, 3])})
    with torch.no_grad():
        found = encode(_traced_images())
        if about.frames:
            read, features_BFRD = _Read(network.decoder).eval(), _traced_clips(found, about)
            models[READ] = _converted(read, (features_BFRD,))
            shape = [-1, features_BFRD.shape[1], -1, features_BFRD.shape[3]]
            models[READ].reshape({0: openvino.PartialShape(shape)})
            found = read(features_BFRD)
    hidden_B1H, cell_B1H, *image = found
    if about.classes:
        del image[-1]  # no step needs the classes
    gates_B1G = torch.zeros(len(hidden_B1H), 1, network.decoder.gates * about.hidden_width)
    step = (gates_B1G, hidden_B1H, cell_B1H, *image)
    models[STEP] = _converted(_Step(network.decoder).eval(), step)
    models[STEP].reshape({n: _shape(part, n) for n, part in enumerate(step)})
    return models


def _traced_images() -> Tensor:
    return torch.zeros(2, _TRACED_PX, _TRACED_PX, 3, dtype=torch.uint8)


def _traced_clips(features_NRD: Tensor, about: Architecture) -> Tensor:
    return features_NRD.unsqueeze(1).repeat(1, about.frames_per_clip or 1, 1, 1)


def _shape(example: Tensor, number: int) -> openvino.PartialShape:
    """Leave open how many images there are, how many beams, and how many regions."""
    rows_are_beams = number < 3
    middle = -1 if rows_are_beams or example.shape[1] > 1 else 1
    return openvino.PartialShape([-1, middle, example.shape[2]])


def _converted(module: nn.Module, example: tuple[Tensor, ...]) -> openvino.Model:
    """Convert without folding: `openvino.convert_model` would mix batch norm into the weights."""
    from openvino.frontend import FrontEndManager  # noqa: PLC0415 - looks for all frontends
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder  # noqa: PLC0415

    frontend = FrontEndManager().load_by_framework("pytorch")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter(
            "ignore"
        )  # of the tracer: deprecated, and sizes that it sees as fixed
        unchecked = {"check_trace": False}  # `publish` checks more than this
        decoder = TorchScriptPythonDecoder(module, example_input=example, trace_kwargs=unchecked)
        model: openvino.Model = frontend.convert(frontend.load(decoder))
    passes = Manager()
    passes.register_pass(ConstantFolding())
    passes.run_passes(model)
    return model


def _template(model: openvino.Model, names: _Names) -> Template:
    """Write a graph down, with names in place of the weights that it shares with the network."""
    _name_weights(model.get_ops(), names)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "graph.xml")
        openvino.serialize(model, path)
        text, numbers = path.read_text(encoding="utf-8"), path.with_suffix(".bin").read_bytes()
    return _without_weights(text, numbers)


def _name_weights(operators: Iterable[Any], names: _Names) -> None:
    for constant in operators:
        if constant.get_type_name() != "Constant":
            continue
        values = np.array(constant.data)
        weight = names.get(values.tobytes()) if values.nbytes >= _LEAST_WEIGHT_BYTES else None
        if weight is None or values.dtype != np.float32:
            constant.set_friendly_name(f"own {constant.get_friendly_name()}")
        elif weight.is_half:
            _replace_by_half(constant, values, weight.name)
        else:
            constant.set_friendly_name(f"@{weight.name}")


def _replace_by_half(constant: Any, values: Any, name: str) -> None:
    half = openvino.op.Constant(values.astype(np.float16))
    half.set_friendly_name(f"@{name}")
    single = opset13.convert(half, "f32")
    for user in constant.output(0).get_target_inputs():
        user.replace_source_output(single.output(0))


def _without_weights(text: str, numbers: bytes) -> Template:
    """Keep of a graph's numbers those that are no weights of the network."""
    kept = bytearray()

    def place(found: re.Match[str]) -> str:
        layer, name = found[0], found[1]
        if name.startswith("@"):
            return _PLACE.sub(f'offset="{name}"', layer)
        size = int(_SIZE.search(layer)[1])  # type: ignore[index] # every constant has one
        begin = int(_PLACE.search(layer)[1])  # type: ignore[index]
        kept.extend(bytes(-len(kept) % _ALIGNED_BYTES))
        layer = _PLACE.sub(f'offset="+{len(kept)}"', layer)
        kept.extend(numbers[begin : begin + size])
        return layer

    return Template(_CONST.sub(place, text), bytes(kept))


_SIZE = re.compile(r'size="(\d+)"')
_ALIGNED_BYTES = 64
