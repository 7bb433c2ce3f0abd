"""Captioner: images -> features -> beams -> captions.

B images, K beams, T steps, R regions, S side of the network's square
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from app.captioner import beam, checkpoint, fused, image, recorded
from app.captioner import device as device_
from app.captioner.checkpoint import Checkpoint
from app.captioner.device import Precision
from app.captioner.errors import CheckpointError
from app.captioner.network import Network
from app.captioner.vocabulary import BOS, EOS, PAD, UNK

GOLDEN_MAX_PIXELS = 4_000_000
GOLDEN_TOLERANCE_BFLOAT16 = 0.5
"""In nats, of a whole caption. On dev images rounding moves a caption by .06 in the mean."""
_GPU_LANES = 2
"""One batch is copied over while the other is at work."""

OnStage = Callable[[str, float, float], None]


def _nobody(stage: str, began_s: float, ended_s: float) -> None:
    """Take no note of a stage."""


@dataclass(frozen=True)
class Word:
    """One word of a caption.

    Attributes:
        text: the word.
        log_prob: its log-probability given the words before, in nats.
        attention: float32 ``(rows, columns)``, how much the word looked at each region; with the
            sentinel it sums to 1. None where the decoder has no attention.
        sentinel: 0..1, how much of the word came from language instead of the image; or None.
    """

    text: str
    log_prob: float
    attention: npt.NDArray[np.float32] | None = None
    sentinel: float | None = None


@dataclass(frozen=True)
class Caption:
    """A finished caption.

    Attributes:
        text: words joined by spaces.
        log_prob: sum over its words and the end mark, in nats.
        score: log_prob after the length penalty; candidates are ranked by it.
        words: one by one.
    """

    text: str
    log_prob: float
    score: float
    words: tuple[Word, ...]


class _Found(NamedTuple):
    """`beam.Beams` as numpy arrays: one copy from the device, then no more tensors."""

    words_BKT: npt.NDArray[np.int64]
    lengths_BK: npt.NDArray[np.int64]
    log_probs_BK: npt.NDArray[np.float32]
    scores_BK: npt.NDArray[np.float32]
    word_log_probs_BKT: npt.NDArray[np.float32]
    attention_BKTR: npt.NDArray[np.float32] | None


class Captioner:
    """A checkpoint on a device.

    Args:
        loaded: what `checkpoint.load` gave, or a network still in training.
        device: a torch device string.
        directory: where the golden caption lies, if anywhere.
        precision: of the large products, see `fused.fused` and, for a GPU, `recorded.prepared`.
        cores: of a CPU, for all calls of `caption` under way together; without it the number of
            torch's threads stays the caller's business.
    """

    def __init__(
        self,
        loaded: Checkpoint,
        *,
        device: str = "cpu",
        directory: Path | None = None,
        precision: Precision = "float32",
        cores: int | None = None,
    ) -> None:
        self.device = torch.device(device)
        on_cpu = self.device.type == "cpu"
        self._cores = device_.Cores(cores) if cores is not None and on_cpu else None
        self.network = _prepared(loaded.network.to(self.device).eval(), precision)
        self.vocabulary = loaded.vocabulary
        self.manifest = loaded.manifest
        self._directory = directory
        self._geometry = loaded.manifest.image
        self._precision = precision
        self._recorder: recorded.Recorder | None = None
        if self.device.type == "cuda":
            search = partial(self._search, wanted=None)
            self._recorder = recorded.Recorder(self.network, search, self._geometry.size_px)

    @classmethod
    def load(
        cls,
        directory: Path,
        *,
        device: str = "cpu",
        precision: Precision = "float32",
        cores: int | None = None,
    ) -> Self:
        """Load and verify a directory of the model store.

        Raises:
            CheckpointError: the directory cannot be trusted, or the CPU lacks the precision.
        """
        loaded = checkpoint.load(directory)
        return cls(loaded, device=device, directory=directory, precision=precision, cores=cores)

    @property
    def lanes(self) -> int:
        """How many calls of `caption` may run side by side, each in a thread, with profit."""
        if self._recorder is not None:
            return _GPU_LANES
        return 1 if self._cores is None else self._cores.count

    def read(self, data: bytes, *, max_pixels: int) -> Tensor:
        """Turn the bytes of a JPEG, PNG or WebP file into the network's square.

        Returns:
            uint8 ``(3, S, S)`` on the CPU. Safe to call from several threads.

        Raises:
            ImageError: the upload is at fault; its subclass says how.
        """
        size_px = self._geometry.size_px
        image_CHW = image.decode(data, at_least_px=size_px, max_pixels=max_pixels)
        return image.fit(image_CHW, size_px=size_px, how=self._geometry.fit)

    def caption(
        self,
        images: Sequence[Tensor],
        *,
        on_stage: OnStage = _nobody,
        wanted: beam.Wanted = beam.everybody,
        alone: bool = True,
    ) -> list[tuple[Caption, ...]]:
        """Caption one batch.

        Args:
            images: from `read`.
            on_stage: told about ``encode`` and ``search``: when each began and ended, on the
                monotonic clock.
            wanted: says whether somebody still waits for image b, and once it said no, says no for
                ever; asked before the search and every few steps of it, on a GPU before the batch.
            alone: whether the process has nothing else to do, see `device.Cores`.

        Returns:
            Per image its candidates, best first, at most ``search.beam_width``. Whom nobody waits
            for may get none.

        Raises:
            OutOfMemory: the batch does not fit into the device; a smaller one may.
            DeviceFault: the device has failed for good.
        """
        with nullcontext() if self._cores is None else self._cores.shared(alone=alone):
            if self._recorder is None:
                return device_.guarded(partial(self._caption_batch, images, on_stage, wanted))
            record = partial(self._caption_recorded, self._recorder)
            return device_.guarded(partial(record, images, on_stage, wanted))

    @torch.inference_mode()
    def _caption_batch(
        self, images: Sequence[Tensor], on_stage: OnStage, wanted: beam.Wanted
    ) -> list[tuple[Caption, ...]]:
        began_s = time.monotonic()
        features_BRD = self.network.encoder(torch.stack(list(images)).to(self.device))
        encoded_s = time.monotonic()
        captions = self._caption_wanted(features_BRD, wanted)
        on_stage("encode", began_s, encoded_s)
        on_stage("search", encoded_s, time.monotonic())
        return captions

    def _caption_recorded(
        self,
        recorder: recorded.Recorder,
        images: Sequence[Tensor],
        on_stage: OnStage,
        wanted: beam.Wanted,
    ) -> list[tuple[Caption, ...]]:
        """Caption on a GPU the images that somebody still waits for."""
        began_s = time.monotonic()
        captions: list[tuple[Caption, ...]] = [() for _ in images]
        staying = [b for b in range(len(images)) if wanted(b)]
        search_s = 0.0
        if staying:
            beams, search_s = recorder.caption([images[b] for b in staying])
            for b, candidates in zip(staying, self._captions(beams), strict=True):
                captions[b] = candidates
        ended_s = time.monotonic()
        on_stage("encode", began_s, ended_s - search_s)
        on_stage("search", ended_s - search_s, ended_s)
        return captions

    def _caption_wanted(
        self, features_BRD: Tensor, wanted: beam.Wanted
    ) -> list[tuple[Caption, ...]]:
        """Search for the images that somebody still waits for; the others get no candidates."""
        captions: list[tuple[Caption, ...]] = [() for _ in features_BRD]
        staying = [b for b in range(len(features_BRD)) if wanted(b)]
        if staying:
            found = self.caption_features(
                features_BRD[staying], wanted=lambda n: wanted(staying[n])
            )
            for b, candidates in zip(staying, found, strict=True):
                captions[b] = candidates
        return captions

    @torch.inference_mode()
    def caption_features(
        self, features_BRD: Tensor, *, wanted: beam.Wanted = beam.everybody
    ) -> list[tuple[Caption, ...]]:
        """Caption images whose features are at hand, as the trainer's are."""
        return self._captions(self._search(features_BRD, wanted=wanted))

    def _search(self, features_BRD: Tensor, *, wanted: beam.Wanted | None) -> beam.Beams:
        return beam.search(
            self.network.decoder,
            features_BRD,
            self.manifest.search,
            bos=BOS,
            eos=EOS,
            banned=(PAD, UNK),
            wanted=wanted,
        )

    def _captions(self, beams: beam.Beams) -> list[tuple[Caption, ...]]:
        found = _to_host(beams)
        return [self._candidates(found, b) for b in range(len(found.scores_BK))]

    def warm_up(self, batch_sizes: Iterable[int]) -> None:
        """Run each batch size once, with all cores and with one: no user pays for first times."""
        size_px = self._geometry.size_px
        for size in batch_sizes:
            for alone in (True, False) if self.lanes > 1 else (True,):
                blank = torch.zeros(3, size_px, size_px, dtype=torch.uint8)
                self.caption([blank] * size, alone=alone)

    def check_golden(self) -> None:
        """Say the golden caption; in bfloat16 it may be any of the candidates.

        Raises:
            CheckpointError: this machine says something else than the trainer's did.
        """
        if self._directory is None:
            raise CheckpointError("a captioner that was not loaded has no golden caption")
        data, golden = checkpoint.read_golden(self._directory)
        candidates = self.caption([self.read(data, max_pixels=GOLDEN_MAX_PIXELS)])[0]
        best, tolerance = candidates[0], golden.tolerance
        if self._precision == "bfloat16":  # which of two close candidates wins is rounding
            tolerance = max(tolerance, GOLDEN_TOLERANCE_BFLOAT16)
            best = next((each for each in candidates if each.text == golden.caption), best)
        close = math.isclose(best.log_prob, golden.log_prob, rel_tol=0, abs_tol=tolerance)
        if best.text != golden.caption or not close:
            raise CheckpointError(
                f"checkpoint {self._directory}: the golden caption is {golden.caption!r} at "
                f"{golden.log_prob:.3f}, this machine says {best.text!r} at {best.log_prob:.3f}"
            )

    def _candidates(self, found: _Found, b: int) -> tuple[Caption, ...]:
        filled = np.flatnonzero(np.isfinite(found.scores_BK[b]))
        return tuple(self._caption(found, b, int(k)) for k in filled)

    def _caption(self, found: _Found, b: int, k: int) -> Caption:
        words = tuple(self._word(found, b, k, t) for t in range(found.lengths_BK[b, k]))
        return Caption(
            " ".join(word.text for word in words),
            float(found.log_probs_BK[b, k]),
            float(found.scores_BK[b, k]),
            words,
        )

    def _word(self, found: _Found, b: int, k: int, t: int) -> Word:
        (text,) = self.vocabulary.decode([int(found.words_BKT[b, k, t])])
        log_prob = float(found.word_log_probs_BKT[b, k, t])
        if found.attention_BKTR is None:
            return Word(text, log_prob)
        *_, sentinel = attention_R = found.attention_BKTR[b, k, t]
        side = math.isqrt(len(attention_R) - 1)
        return Word(text, log_prob, attention_R[:-1].reshape(side, side), float(sentinel))


def fastest_precision(device: str) -> Precision:
    """Give the precision in which the device multiplies fastest without changing dev scores.

    Many CPUs can only imitate bfloat16, at a fraction of the speed of float32, and so do NVIDIA's
    GPUs before Ampere.
    """
    if torch.device(device).type != "cpu":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return "bfloat16" if native else "float32"
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()  # noqa: SLF001
    return "bfloat16" if native and fused.available() else "float32"


def _prepared(network: Network, precision: Precision) -> Network:
    device, dtype = network.encoder.mean.device, getattr(torch, precision)
    if device.type == "cpu" and fused.available():
        prepare, computes = fused.fused, fused.computes(dtype)
    elif device.type == "cuda":
        prepare, computes = recorded.prepared, recorded.computes(dtype)
    else:
        prepare, computes = _as_it_is, dtype == torch.float32
    if not computes:
        raise CheckpointError(f"this {device.type} cannot compute in {precision}: choose float32")
    return prepare(network, dtype)


def _as_it_is(network: Network, dtype: torch.dtype) -> Network:  # noqa: ARG001
    return network


def _to_host(beams: beam.Beams) -> _Found:
    arrays: list[Any] = [None if tensor is None else tensor.cpu().numpy() for tensor in beams]
    return _Found(*arrays)
