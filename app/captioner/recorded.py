"""The network prepared for a GPU: recorded once per batch size, then started as a whole.

A caption is a thousand small kernels, and to start each of them from Python takes longer than it
runs. A CUDA graph starts them all at once. It knows one batch size, asks nothing on its way, and so
takes every step of the search even where all captions have ended.

Two threads keep a GPU at work: while one waits for its captions, the next batch is copied over on
a stream of its own.

B images, C channels, H/W pixels, S side of the network's square
"""

import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from app.captioner.beam import Beams
from app.captioner.folding import decoder_with_table, folded_encoder, network_of
from app.captioner.network import Network

Search = Callable[[Tensor], Beams]
_TRIAL_RUNS = 3
"""Before recording: libraries choose their kernels and take their memory at first use."""


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


class _Recording(NamedTuple):
    """One batch size: where its images go, what to start, and where its beams are afterwards."""

    images_BCHW: Tensor
    encode: Callable[[], None]
    search: Callable[[], None]
    beams: Callable[[], Beams]


class Recorder:
    """A network on a GPU, by batch size. Safe to call from several threads.

    Args:
        network: from `prepared`.
        search: features to beams, asking nothing: `beam.search` with ``wanted=None``.
        size_px: S.
    """

    def __init__(self, network: Network, search: Search, size_px: int) -> None:
        self._network = network
        self._search = search
        self._size_px = size_px
        self._device = network.encoder.mean.device
        self._recordings: dict[int, _Recording] = {}
        self._lock = threading.Lock()
        with torch.cuda.device(self._device):
            self._computing, self._copying = _stream(), _stream()
            # one pool for all sizes: they run one after another, and beams are copied in between
            self._pool = torch.cuda.graph_pool_handle()
            torch.cuda.synchronize()  # weights came on another stream

    @torch.inference_mode()
    def caption(self, images: Sequence[Tensor]) -> Answer:
        """Caption a batch. A batch smaller than any recorded takes the place of the next larger.

        Args:
            images: uint8 ``(3, S, S)`` on the CPU.
        """
        with torch.cuda.device(self._device):
            staged_BCHW, arrived = self._copy_over(images)
            encoded, ended = (_event(enable_timing=True) for _ in range(2))
            copied = _event(blocking=True)  # so that the thread sleeps while it waits
            with self._lock, torch.cuda.stream(self._computing):
                recording = self._recording(len(images))
                self._computing.wait_event(arrived)
                staged_BCHW.record_stream(self._computing)
                recording.images_BCHW[: len(images)].copy_(staged_BCHW)
                recording.encode()
                encoded.record()
                recording.search()
                ended.record()
                beams = _to_host(recording.beams(), len(images))
                copied.record()
            copied.synchronize()
            return Answer(beams, encoded.elapsed_time(ended) / 1e3)

    def _copy_over(self, images: Sequence[Tensor]) -> tuple[Tensor, torch.cuda.Event]:
        """Start the copy to the device; pinned memory lets it run beside the network."""
        size = (len(images), 3, self._size_px, self._size_px)
        pinned_BCHW = torch.empty(size, dtype=torch.uint8, pin_memory=True)
        torch.stack(list(images), out=pinned_BCHW)
        with torch.cuda.stream(self._copying):
            staged_BCHW = pinned_BCHW.to(self._device, non_blocking=True)
            arrived = _event()
            arrived.record()
        return staged_BCHW, arrived

    def _recording(self, batch: int) -> _Recording:
        size = smallest_for(batch, self._recordings)
        if size not in self._recordings:
            self._recordings[size] = self._record(size)
        return self._recordings[size]

    def _record(self, size: int) -> _Recording:
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
                f"batches of {size} run step by step, they cannot be recorded: {error}",
                RuntimeWarning,
                stacklevel=2,
            )
            return self._step_by_step(images_BCHW)

    def _graphs(self, images_BCHW: Tensor) -> _Recording:
        encode, search = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with self._recording_to(encode):
            features_BRD = self._network.encoder(images_BCHW)
        with self._recording_to(search):
            beams = self._search(features_BRD)
        return _Recording(images_BCHW, encode.replay, search.replay, lambda: beams)

    def _recording_to(self, graph: torch.cuda.CUDAGraph) -> torch.cuda.graph:
        # other threads may wait for their captions meanwhile
        return torch.cuda.graph(
            graph, pool=self._pool, stream=self._computing, capture_error_mode="thread_local"
        )

    def _step_by_step(self, images_BCHW: Tensor) -> _Recording:
        features: list[Tensor] = []
        found: list[Beams] = []

        def encode() -> None:
            features[:] = [self._network.encoder(images_BCHW)]

        def search() -> None:
            found[:] = [self._search(features[0])]

        return _Recording(images_BCHW, encode, search, lambda: found[0])


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
