"""The network on a CPU, in OpenVINO, without torch.

Every worker has graphs of its own, which compute in the thread that calls: as many batches run side
by side as there are workers, one core each, and the GIL is free while they compute.

B images, H/W pixels, C channels, K beams, V words, G gates of an LSTM, O/I widths, F frames of a
clip, R regions, D feature width
"""

import ctypes
import math
import queue
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, Final

import numpy as np
import openvino as ov
from openvino import opset13

from app.captioner import tensors
from app.captioner.architecture import (
    IMAGENET_CLASSES,
    Architecture,
    parts_by_region,
    summary_part,
)
from app.captioner.checkpoint import Checkpoint
from app.captioner.engines.engine import EngineResult, Precision, Stage
from app.captioner.engines.numpy_search import (
    Encoded,
    Floats,
    Following,
    Integers,
    search,
)
from app.captioner.errors import CheckpointError, OutOfMemory
from app.captioner.graphs import ENCODE, ENCODE_INT8, READ, STEP
from app.captioner.image.decode import Pixels
from app.captioner.image.frames import evenly, frames_of
from app.captioner.manifest import MOST_WORKING_BYTES, Manifest
from app.captioner.search import BeamArrays, StillWaiting, always_waiting
from app.captioner.tensors import Place
from app.captioner.vocabulary import BOS, EOS, PAD, UNK

_IMAGES_AT_ONCE = 2
"""A graph keeps what its largest batch took: ten megabytes an image. More are hardly faster."""
_FULL = ("bad_alloc", "allocate", "out of memory")
_HINTS: Final = {"float32": "f32", "int8": "f32", "bfloat16": "bf16"}
_TABLE = ("decoder.embedding.weight", "decoder.input_gates.weight", "decoder.input_gates.bias")
_CHECKED_IMAGES = 8  # as the bounds of a manifest have it
_SMALL_BYTES = 2**20
_LARGEST_INT8 = 127


def fastest_precision(checkpoint: Checkpoint) -> Precision:
    """Give the precision in which this CPU is fastest at the same dev scores.

    The plugin computes in bfloat16 by itself where the CPU has units for it.
    """
    if computes_bfloat16():
        return "bfloat16"
    return "int8" if ENCODE_INT8 in checkpoint.graphs else "float32"


def computes_bfloat16() -> bool:
    """Say whether this CPU has units for products in bfloat16; elsewhere they are imitated."""
    return bool(ov.Core().get_property("CPU", "INFERENCE_PRECISION_HINT") == ov.Type.bf16)


class CpuEngine:
    """A checkpoint in OpenVINO; see `engine.Engine`.

    Args:
        checkpoint: what was loaded.
        precision: ``int8`` takes the quantised encoder and rounds the matrices of the decoder to 8
            bits; ``bfloat16`` rounds weights and activations, where the CPU has units for it.
        workers: batches side by side, a core each.
        beside: whether another engine is at work: then one core prepares the workers, not all.

    Raises:
        CheckpointError: the graphs are none of the network, or are not there, or this CPU lacks
            the precision.
    """

    batches_cost_alike = False

    def __init__(
        self, checkpoint: Checkpoint, *, precision: Precision, workers: int, beside: bool = False
    ) -> None:
        if precision == "bfloat16" and not computes_bfloat16():
            raise CheckpointError(f"this CPU cannot compute in {precision}: choose float32")
        self.max_concurrent_batches = workers
        self._preparing = 1 if beside else workers
        self._workers = _workers(checkpoint, precision, workers, self._preparing)
        self._free: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._free.put(worker)
        _give_back_memory()

    def run(self, images: Sequence[Pixels], still_waiting: StillWaiting) -> EngineResult:
        """Find the captions of one batch on one core; see `engine.Engine.run`."""
        with self._worker() as worker:
            return worker.run(images, still_waiting)

    def summaries(self, images: Sequence[Pixels]) -> Floats:
        """Give each image in one vector; see `engine.Engine.summaries`."""
        with self._worker() as worker:
            return worker.summaries(images)

    def warm_up(self, images: Sequence[Pixels]) -> None:
        """Run a batch once on every worker."""
        with ThreadPoolExecutor(self._preparing) as threads:
            list(threads.map(lambda worker: worker.run(images, always_waiting), self._workers))

    @contextmanager
    def _worker(self) -> "Iterator[_Worker]":
        """Give a free worker, and say in our words that a batch does not fit."""
        worker = self._free.get()
        try:
            yield worker
        except (MemoryError, RuntimeError) as error:  # of numpy and C++, and what OpenVINO says
            if isinstance(error, MemoryError) or any(sign in str(error) for sign in _FULL):
                raise OutOfMemory("the batch does not fit into memory") from None
            raise
        finally:
            self._free.put(worker)


def _workers(
    checkpoint: Checkpoint, precision: Precision, count: int, side_by_side: int
) -> "list[_Worker]":
    models = _Models(checkpoint, precision)
    with ThreadPoolExecutor(side_by_side) as threads:  # compiling lets go of the GIL
        return list(threads.map(lambda _: _Worker(models), range(count)))


class _Models:
    """The graphs of a checkpoint as OpenVINO reads them, and what the search adds."""

    def __init__(self, checkpoint: Checkpoint, precision: Precision) -> None:
        self.manifest = checkpoint.manifest
        self.core = ov.Core()
        self.precision = precision
        numbers = ov.Tensor(np.frombuffer(checkpoint.weights, np.uint8))  # a copy
        places = tensors.layout(checkpoint.weights)
        encode = ENCODE_INT8 if precision == "int8" else ENCODE
        self.encode = self._read(checkpoint.graphs, encode, numbers)
        self.step = self._read(checkpoint.graphs, STEP, numbers)
        of_clips = self.manifest.architecture.frames is not None
        self.read = self._read(checkpoint.graphs, READ, numbers) if of_clips else None
        with self._refusing("the graphs are none of this network"):
            _check_together(self.encode, self.step, self.manifest, self.read)
            table_VG = _word_gates(checkpoint.weights, places, self.manifest.architecture)
        self.word_gates_VG = table_VG if precision == "float32" else table_VG.astype(np.float16)
        self.step = _with_search(self.step, self.manifest)
        if precision == "int8":
            _round_matrices(self.step)

    def _read(self, graphs: Mapping[str, bytes], name: str, numbers: ov.Tensor) -> ov.Model:
        if name not in graphs:
            raise self._refused(f"it has no {name}: publish it with --data, or use float32")
        with self._refusing(name):
            model = self.core.read_model(graphs[name], numbers)
        _copy_small_constants(model)
        return model

    @contextmanager
    def _refusing(self, what: str) -> Iterator[None]:
        """Say in our words what OpenVINO, or we, have against a graph."""
        try:
            yield
        except (RuntimeError, ValueError, KeyError) as error:
            raise self._refused(f"{what}: {_last_line(error)}") from None

    def _refused(self, reason: str) -> CheckpointError:
        return CheckpointError(f"checkpoint {self.manifest.name}/{self.manifest.version}: {reason}")

    def compiled(self, model: ov.Model) -> "_Graph":
        """Compile for one core, in the calling thread: no thread of OpenVINO's own takes part."""
        config = {
            "NUM_STREAMS": 0,
            "INFERENCE_NUM_THREADS": 1,
            "INFERENCE_PRECISION_HINT": _HINTS[self.precision],
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        }
        return _Graph(self.core.compile_model(model, "CPU", config).create_infer_request())


def _copy_small_constants(model: ov.Model) -> None:
    """Let what a compiled graph keeps as it is not keep all numbers of the checkpoint alive."""
    for operator in model.get_ops():
        if operator.get_type_name() == "Constant" and operator.get_byte_size() < _SMALL_BYTES:
            copied = opset13.constant(np.array(operator.data)).output(0)
            for user in operator.output(0).get_target_inputs():
                user.replace_source_output(copied)


def _give_back_memory() -> None:
    """Let the C library give back what loading took: it would keep it for the next load."""
    with suppress(AttributeError, OSError):  # another library than glibc
        ctypes.CDLL(None).malloc_trim(0)


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[-1][:300]


def _check_together(
    encode: ov.Model, step: ov.Model, manifest: Manifest, read: ov.Model | None = None
) -> None:
    """Let the graphs go through a full batch, in shapes alone, and leave batch and beams open.

    What a stranger's graphs take and give is then known, and how much memory for.

    Raises:
        ValueError: it is not what this network takes and gives, or too much.
        RuntimeError: it does not fit together.
    """
    about, S = manifest.architecture, manifest.image.size_px
    B, K = _CHECKED_IMAGES, manifest.search.beam_width
    H, G = about.hidden_width, _gates(about)
    _reshape(encode, [[B, S, S, 3]])
    _check_memory(encode)
    last, features = encode, _shape(encode.output(0))
    if read is not None:
        _expect(len(encode.outputs) == 1 and len(features) == 3, "they see no features of frames")
        _expect(features[0] == B, "they mix frames")
        _reshape(read, [[B, about.frames_per_clip or 1, *features[1:]]])
        _check_memory(read)
        last = read
    start, cell, *image = (_shape(output) for output in last.outputs)
    if about.classes:
        _expect(image[-1:] == [[B, IMAGENET_CLASSES]], "they tell other classes")
        image = image[:-1]
    rows = [[B, K, G], [B, K, H], [B, K, H]]
    _reshape(step, [*rows, *image])
    _check_memory(step)
    scores, *after = (_shape(output) for output in step.outputs)
    attention = after[2:]
    single = [*encode.outputs, *last.outputs, *step.inputs, *step.outputs]
    _expect(encode.input(0).get_element_type() == ov.Type.u8, "they see no pixels")
    _expect(all(each.get_element_type() == ov.Type.f32 for each in single), "they round")
    _expect(start == cell == [B, 1, H], "they begin with another state")
    _expect(all(each[0] == B for each in image), "they mix images")
    _expect(scores == [B, K, about.words], "they score other words")
    _expect(after[:2] == rows[1:], "they go on with another state")
    _expect(len(attention) == (about.decoder == "attention"), "they look elsewhere")
    for shape in attention:
        R = shape[2] - 1
        fits = about.frames_per_clip == R if about.frames == "lstm" else math.isqrt(R) ** 2 == R
        _expect(shape[:2] == [B, K] and fits, "no square")
    _reshape(encode, [[-1, S, S, 3]])
    if read is not None:
        _reshape(read, [[-1, about.frames_per_clip or 1, *features[1:]]])
    _reshape(step, [[-1, -1, *row[2:]] for row in rows] + _open(image, about))


def _open(image: Sequence[list[int]], about: Architecture) -> list[list[int]]:
    """Leave open how many images there are; and how many regions, for those of several frames."""
    by_region = 0 if about.frames else parts_by_region(about)
    return [[-1, -1 if n < by_region else R, width] for n, (_, R, width) in enumerate(image)]


def _gates(about: Architecture) -> int:
    """Give the width of all gates of the LSTM; the attention's has one more, for the sentinel."""
    return (5 if about.decoder == "attention" else 4) * about.hidden_width


def _expect(right: bool, otherwise: str) -> None:  # noqa: FBT001
    if not right:
        raise ValueError(otherwise)


def _reshape(model: ov.Model, shapes: Sequence[list[int]]) -> None:
    _expect(len(model.inputs) == len(shapes), f"expected {len(shapes)} inputs in a graph")
    model.reshape({n: ov.PartialShape(shape) for n, shape in enumerate(shapes)})


def _shape(output: Any) -> list[int]:
    return list(output.get_shape())


def _check_memory(model: ov.Model) -> None:
    """See that no result of a stranger's graph takes more memory than a batch may."""
    for operator in model.get_ops():
        for output in operator.outputs():
            shape = output.get_partial_shape()
            _expect(shape.is_static, "the size of a result depends on more than the batch")
            values = math.prod(each.get_length() for each in shape)
            _expect(4 * values <= MOST_WORKING_BYTES, f"more than {MOST_WORKING_BYTES} bytes")


def _round_matrices(model: ov.Model) -> None:
    """Round the matrices of all products to 8 bits, each row by a scale of its own.

    They are multiplied in float32: few rows wait for the weights to be read, and these are a
    quarter of the bytes. With the 24 rows of a full batch it makes no difference any more.
    """
    for product in model.get_ops():
        if product.get_type_name() != "MatMul":
            continue
        constant = product.input_value(1).get_node()
        while constant.get_type_name() == "Convert":
            constant = constant.input_value(0).get_node()
        if constant.get_type_name() == "Constant" and product.get_attributes()["transpose_b"]:
            weight_OI = np.array(constant.data, np.float32)
            product.input(1).replace_source_output(_rounded(weight_OI).output(0))


def _rounded(weight_OI: Floats) -> Any:
    scale_O1 = np.abs(weight_OI).max(axis=-1, keepdims=True) / _LARGEST_INT8
    scale_O1 = np.maximum(scale_O1, np.finfo(np.float32).tiny)
    integers = np.rint(weight_OI / scale_O1).astype(np.int8)
    return opset13.multiply(
        opset13.convert(opset13.constant(integers), "f32"), opset13.constant(scale_O1)
    )


def _with_search(step: ov.Model, manifest: Manifest) -> ov.Model:
    """Let a step end with the likeliest words in place of all word scores.

    Its last input becomes what is added to word scores, so that some are impossible.
    """
    scores, hidden, cell, *attention = (result.input_value(0) for result in step.get_results())
    words = manifest.architecture.words
    barred = opset13.parameter([-1, -1, words], np.float32, name="barred")
    log_probs = opset13.log_softmax(opset13.add(scores, barred), -1)
    count = opset13.constant(min(manifest.search.beam_width, words), np.int64)
    best = opset13.topk(log_probs, count, -1, "max", "value", index_element_type="i64")
    end = opset13.gather(log_probs, opset13.constant([EOS]), opset13.constant(-1))
    outputs = [best.output(0), best.output(1), end.output(0), hidden, cell, *attention]
    parameters = [*step.get_parameters(), barred]
    return ov.Model([opset13.result(each) for each in outputs], parameters, "step")


def _word_gates(content: bytes, places: Mapping[str, Place], about: Architecture) -> Floats:
    """Compute for every word what the LSTM takes of it: it is looked up afterwards."""
    embedding_VE, weight_GE, bias_G = (
        tensors.array(content, places[name]).astype(np.float32) for name in _TABLE
    )
    V, E, G = about.words, about.embedding_width, _gates(about)
    shapes = [embedding_VE.shape, weight_GE.shape, bias_G.shape]
    _expect(shapes == [(V, E), (G, E), (G,)], "the weights are of another width")
    table_VG: Floats = embedding_VE @ weight_GE.T + bias_G
    return table_VG


class _Worker:
    """Graphs that one batch at a time uses."""

    def __init__(self, models: _Models) -> None:
        about = models.manifest.architecture
        self.words = about.words
        self._has_classes, self._summary_part = about.classes, summary_part(about)
        self._options = models.manifest.search
        self._frames_per_clip, self._by_region = about.frames_per_clip, parts_by_region(about)
        self._encode = models.compiled(models.encode)
        self._read = models.compiled(models.read) if models.read is not None else None
        self._step = models.compiled(models.step)
        self._word_gates_VG = models.word_gates_VG

    def run(self, images: Sequence[Pixels], still_waiting: StillWaiting) -> EngineResult:
        began_s = time.monotonic()
        parts = self._encoded(images)
        encoded_s = time.monotonic()
        staying = [b for b in range(len(images)) if still_waiting(b)]
        if len(staying) < len(images):
            parts = [part[staying] for part in parts]
        beams = self._search(parts, lambda n: still_waiting(staying[n])) if staying else None
        if beams is not None and self._read is None and images[0].ndim == 4:
            beams = beams.over_frames(len(images[0]))
        stages = Stage("encode", began_s, encoded_s), Stage("search", encoded_s, time.monotonic())
        return EngineResult(staying, beams, stages)

    def summaries(self, images: Sequence[Pixels]) -> Floats:
        return self._summary(self._encoded(images))

    def _summary(self, parts: Sequence[Floats]) -> Floats:
        """Give ``summary_BW``, a copy: what a lone image left is overwritten by the next."""
        hidden_B1H, _, *image = parts
        summed = hidden_B1H if self._summary_part is None else image[self._summary_part]
        summary_BW: Floats = summed.mean(1)
        return summary_BW

    def _encoded(self, images: Sequence[Pixels]) -> list[Floats]:
        """Give what the search needs of photos and shots: ``(B, ...)`` each."""
        if self._read is None and all(image.ndim == 3 for image in images):
            return self._encoded_squares(images)
        each = [self._encoded_frames(frames_of(image)) for image in images]
        return [np.concatenate(parts) for parts in zip(*each, strict=True)]

    def _encoded_squares(self, squares: Sequence[Pixels]) -> list[Floats]:
        if len(squares) <= _IMAGES_AT_ONCE:
            return self._encode.run([np.stack(squares)])
        starts = range(0, len(squares), _IMAGES_AT_ONCE)
        pieces = [
            [part.copy() for part in self._encoded_squares(squares[n : n + _IMAGES_AT_ONCE])]
            for n in starts
        ]
        return [np.concatenate(parts) for parts in zip(*pieces, strict=True)]

    def _encoded_frames(self, frames_FSSC: Pixels) -> list[Floats]:
        """Make one image of the frames of a shot, as `model.network.Decoder.start` does."""
        of_frames = self._encoded_squares(list(frames_FSSC))
        if self._read is None:
            image = slice(2, 2 + self._by_region)  # after the state
            averaged = [part.mean(0, keepdims=True) for part in of_frames]
            averaged[image] = [part.reshape(1, -1, part.shape[-1]) for part in of_frames[image]]
            return averaged
        (features_FRD,) = of_frames
        chosen = evenly(len(frames_FSSC), self._frames_per_clip or 1)
        return [part.copy() for part in self._read.run([features_FRD[chosen][None]])]

    def _search(self, parts: Sequence[Floats], still_waiting: StillWaiting) -> BeamArrays:
        hidden_B1H, cell_B1H, *image = parts
        summary_BW = self._summary(parts)
        classes_BC = image.pop().copy() if self._has_classes else None
        found = search(
            self,
            Encoded(hidden_B1H, cell_B1H, image),
            self._options,
            bos=BOS,
            eos=EOS,
            banned=(PAD, UNK),
            still_waiting=still_waiting,
        )
        return found._replace(summary_BW=summary_BW, classes_BC=classes_BC)

    def __call__(
        self,
        words_LG: Integers,
        hidden_LGH: Floats,
        cell_LGH: Floats,
        image: Sequence[Floats],
        barred: Floats,
    ) -> Following:
        """Do one step of the search; see `numpy_search.Step`."""
        gates_LGG = self._word_gates_VG[words_LG].astype(np.float32, copy=False)
        outputs = self._step.run([gates_LGG, hidden_LGH, cell_LGH, *image, barred])
        log_probs, words, ends, hidden, cell, *attention = outputs
        return Following(log_probs, words, ends, hidden, cell, *attention or (None,))


class _Graph:
    """A compiled graph.

    The same as ``request.infer(inputs, share_inputs=True, share_outputs=True)``, without what the
    general case takes of each of its many small runs.
    """

    def __init__(self, request: ov.InferRequest) -> None:
        self._request = request
        self._given: dict[int, Any] = {}
        self._outputs = range(len(request.model_outputs))

    def run(self, inputs: list[Any]) -> list[Any]:
        """Run it; what it gives is overwritten by its next run."""
        for number, array in enumerate(inputs):
            if self._given.get(number) is not array:
                tensor = ov.Tensor(np.ascontiguousarray(array), shared_memory=True)
                self._request.set_input_tensor(number, tensor)
                self._given[number] = array
        self._request.infer()
        return [self._request.get_output_tensor(number).data for number in self._outputs]
