"""The network on a GPU: captured as CUDA graphs per batch size, then started as a whole.

A caption is a thousand small kernels, and to start each of them from Python takes longer than it
runs. A CUDA graph starts them all at once. It knows one batch size, asks nothing on its way, and so
takes every step of the search even where all captions have ended.

Two threads keep a GPU at work: while one waits for its captions, the next batch is copied over on
a stream of its own.

B images, C channels, H/W pixels, S side of the network's square
"""

import threading
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from app.captioner.checkpoint import Checkpoint
from app.captioner.engines.engine import EngineResult, Floats, Precision, Stage, summaries_of
from app.captioner.engines.folding import decoder_with_table, folded_encoder, network_of
from app.captioner.engines.torch_engine import stacked
from app.captioner.errors import CheckpointError, DeviceFault, OutOfMemory
from app.captioner.image.decode import Pixels
from app.captioner.model import beam, torch_checkpoint
from app.captioner.model.beam import Beams
from app.captioner.model.network import Network
from app.captioner.search import BeamArrays, SearchOptions, StillWaiting, always_waiting
from app.captioner.vocabulary import BOS, EOS, PAD, UNK

Search = Callable[[Tensor], Beams]
Result = TypeVar("Result")
_CONCURRENT_BATCHES = 2
"""One batch is copied over while the other is at work."""
_CUDA_FAILED = ("CUDA error", "CUDNN_STATUS", "CUBLAS_STATUS")
_TRIAL_RUNS = 3
"""Before capture: libraries choose their kernels and take their memory at first use."""


def fastest_precision() -> Precision:
    """Give the precision in which the GPU multiplies fastest without changing dev scores.

    GPUs before Ampere only imitate bfloat16.
    """
    return "bfloat16" if computes(torch.bfloat16) else "float32"


class GpuEngine:
    """A checkpoint on a GPU; see `engine.Engine`.

    Args:
        checkpoint: what was loaded.
        device: as torch names it.
        precision: ``float32`` or ``bfloat16``, see `prepared`.

    Raises:
        CheckpointError: there is no such device, or it lacks the precision.
    """

    max_concurrent_batches = _CONCURRENT_BATCHES
    batches_cost_alike = True

    def __init__(self, checkpoint: Checkpoint, *, device: str, precision: Precision) -> None:
        if precision == "int8" or not computes(getattr(torch, precision)):
            raise CheckpointError(f"this GPU cannot compute in {precision}: choose float32")
        network = torch_checkpoint.of(checkpoint).network.to(device)
        self._network = prepared(network, getattr(torch, precision))
        self._search = partial(_search, self._network, checkpoint.manifest.search)
        size_px = checkpoint.manifest.image.size_px
        self._graphs = CudaGraphs(self._network, self._search, size_px)

    def run(self, images: Sequence[Pixels], still_waiting: StillWaiting) -> EngineResult:
        """Find the captions of one batch; see `engine.Engine.run`."""
        return guarded(partial(self._run, images, still_waiting))

    def summaries(self, images: Sequence[Pixels]) -> Floats:
        """Give each image in one vector; see `engine.Engine.summaries`."""
        return summaries_of(self.run(images, always_waiting))

    def warm_up(self, images: Sequence[Pixels]) -> None:
        """Capture a batch size."""
        self.run(images, always_waiting)

    def _run(self, images: Sequence[Pixels], still_waiting: StillWaiting) -> EngineResult:
        began_s, search_s = time.monotonic(), 0.0
        staying, found = [b for b in range(len(images)) if still_waiting(b)], None
        if staying and images[0].ndim == 4:
            found = self._of_shots([images[b] for b in staying])
        elif staying:
            beams, search_s = self._graphs.caption([images[b] for b in staying])
            found = beams.arrays()
        ended_s = time.monotonic()
        stages = (
            Stage("encode", began_s, ended_s - search_s),
            Stage("search", ended_s - search_s, ended_s),
        )
        return EngineResult(staying, found, stages)

    @torch.inference_mode()
    def _of_shots(self, shots: Sequence[Pixels]) -> BeamArrays:
        """Caption shots step by step: they are too few, and too different, to be captured."""
        features_BFRD = self._network.encode(stacked(shots, self._network))
        frames = 1 if self._network.architecture.frames else len(shots[0])
        return self._search(features_BFRD).arrays().over_frames(frames)


def _search(network: Network, options: SearchOptions, features_BRD: Tensor) -> Beams:
    banned = (PAD, UNK)
    beams = beam.search(
        network.decoder, features_BRD, options, bos=BOS, eos=EOS, banned=banned, still_waiting=None
    )
    return beams._replace(classes_BC=network.encoder.class_probabilities(features_BRD))


def guarded(job: Callable[[], Result]) -> Result:
    """Run a job of torch, and say in our words what the device did to it.

    Raises:
        OutOfMemory: It did not fit. What the job held is free again, and so is torch's cache.
        DeviceFault: The device answers nothing any more.
        Exception: Whatever else the job raises.
    """
    try:
        return job()
    except torch.OutOfMemoryError:
        pass
    except RuntimeError as error:
        if _is_fault(error):
            raise DeviceFault("the device has failed; only a new process can use it") from error
        raise
    # Here the exception is gone, and with it the frames that kept the tensors alive.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    raise OutOfMemory("the batch does not fit into the memory of the device")


def _is_fault(error: RuntimeError) -> bool:
    return isinstance(error, torch.AcceleratorError) or any(
        sign in str(error) for sign in _CUDA_FAILED
    )


def computes(dtype: torch.dtype) -> bool:
    """Say whether this GPU has units for products in this type."""
    return dtype == torch.float32 or torch.cuda.is_bf16_supported(including_emulation=False)


@torch.no_grad()
def prepared(network: Network, dtype: torch.dtype) -> Network:
    """Prepare a network for inference on a GPU.

    Args:
        network: on the GPU; it stays as it is.
        dtype: float32, or bfloat16 for the encoder but for its first layers. The decoder stays in
            float32: its words are compared, and its products are too small to gain by less.

    Returns:
        A network of the same interface that cannot be trained or saved.
    """
    encoder = folded_encoder(network.encoder, dtype).to(memory_format=torch.channels_last)
    return network_of(network, encoder, decoder_with_table(network.decoder))


class Answer(NamedTuple):
    """What came back from the device.

    Attributes:
        beams: in the memory of the host.
        search_s: what the search took on the device, in seconds.
    """

    beams: Beams
    search_s: float


class _Captured(NamedTuple):
    """One batch size: where its images go, what to start, and where its beams are afterwards."""

    images_BCHW: Tensor
    encode: Callable[[], None]
    search: Callable[[], None]
    beams: Callable[[], Beams]


class CudaGraphs:
    """A network on a GPU, by batch size. Safe to call from several threads.

    Args:
        network: from `prepared`.
        search: features to beams, asking nothing: `beam.search` with ``still_waiting=None``.
        size_px: S.
    """

    def __init__(self, network: Network, search: Search, size_px: int) -> None:
        self._network = network
        self._search = search
        self._size_px = size_px
        self._device = network.encoder.mean.device
        self._by_size: dict[int, _Captured] = {}
        self._lock = threading.Lock()
        with torch.cuda.device(self._device):
            self._computing, self._copying = _stream(), _stream()
            # one pool for all sizes: they run one after another, and beams are copied in between
            self._pool = torch.cuda.graph_pool_handle()
            torch.cuda.synchronize()  # weights came on another stream

    @torch.inference_mode()
    def caption(self, images: Sequence[Pixels]) -> Answer:
        """Caption a batch. A batch smaller than any captured takes the place of the next larger.

        Args:
            images: uint8 ``(S, S, 3)`` each.
        """
        with torch.cuda.device(self._device):
            staged_BCHW, arrived = self._copy_over(images)
            encoded, ended = (_event(enable_timing=True) for _ in range(2))
            copied = _event(blocking=True)  # so that the thread sleeps while it waits
            with self._lock, torch.cuda.stream(self._computing):
                captured = self._captured(len(images))
                self._computing.wait_event(arrived)
                staged_BCHW.record_stream(self._computing)
                captured.images_BCHW[: len(images)].copy_(staged_BCHW)
                captured.encode()
                encoded.record()
                captured.search()
                ended.record()
                beams = _to_host(captured.beams(), len(images))
                copied.record()
            copied.synchronize()
            return Answer(beams, encoded.elapsed_time(ended) / 1e3)

    def _copy_over(self, images: Sequence[Pixels]) -> tuple[Tensor, torch.cuda.Event]:
        """Start the copy to the device; pinned memory lets it run beside the network."""
        size = (len(images), self._size_px, self._size_px, 3)
        pinned_BHWC = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        torch.stack([torch.from_numpy(image) for image in images], out=pinned_BHWC)
        with torch.cuda.stream(self._copying):
            staged_BHWC = pinned_BHWC.to(self._device, non_blocking=True)
            arrived = _event()
            arrived.record()
        return staged_BHWC.permute(0, 3, 1, 2), arrived

    def _captured(self, batch: int) -> _Captured:
        size = smallest_for(batch, self._by_size)
        if size not in self._by_size:
            self._by_size[size] = self._capture(size)
        return self._by_size[size]

    def _capture(self, size: int) -> _Captured:
        size_px = self._size_px
        images_BCHW = torch.zeros(
            (size, 3, size_px, size_px), dtype=torch.uint8, device=self._device
        )
        for _ in range(_TRIAL_RUNS):
            self._search(self._network.encoder(images_BCHW))
        try:
            return self._graphs(images_BCHW)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            warnings.warn(
                f"batches of {size} run step by step, they cannot be captured: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
            return self._step_by_step(images_BCHW)

    def _graphs(self, images_BCHW: Tensor) -> _Captured:
        encode, search = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with self._capturing(encode):
            features_BRD = self._network.encoder(images_BCHW)
        with self._capturing(search):
            beams = self._search(features_BRD)
        return _Captured(images_BCHW, encode.replay, search.replay, lambda: beams)

    def _capturing(self, graph: torch.cuda.CUDAGraph) -> torch.cuda.graph:
        # other threads may wait for their captions meanwhile
        return torch.cuda.graph(
            graph, pool=self._pool, stream=self._computing, capture_error_mode="thread_local"
        )

    def _step_by_step(self, images_BCHW: Tensor) -> _Captured:
        features: list[Tensor] = []
        found: list[Beams] = []

        def encode() -> None:
            features[:] = [self._network.encoder(images_BCHW)]

        def search() -> None:
            found[:] = [self._search(features[0])]

        return _Captured(images_BCHW, encode, search, lambda: found[0])


def smallest_for(batch: int, sizes: Iterable[int]) -> int:
    """Give the smallest of these sizes that holds the batch, or the batch's own."""
    return min((size for size in sizes if size >= batch), default=batch)


def _to_host(beams: Beams, images: int) -> Beams:
    """Start the copies of the first images' beams to pinned memory."""
    return Beams._make(
        None if part is None else part[:images].to("cpu", non_blocking=True) for part in beams
    )


def _stream() -> torch.cuda.Stream:
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]


def _event(**options: bool) -> torch.cuda.Event:
    return torch.cuda.Event(**options)  # type: ignore[no-untyped-call]
