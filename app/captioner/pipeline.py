"""Captioner: images -> features -> beams -> captions.

B images, K beams, T steps, R regions, S side of the network's square
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from app.captioner import beam, checkpoint, compiled, fused, image, recorded
from app.captioner import captions as captions_
from app.captioner import decode as decode_
from app.captioner import device as device_
from app.captioner.captions import Caption, Findings, Found
from app.captioner.checkpoint import Checkpoint
from app.captioner.decode import is_quick
from app.captioner.device import Precision
from app.captioner.errors import CheckpointError, ImageError
from app.captioner.forking import MOST_LANES
from app.captioner.image import Unread
from app.captioner.lanes import Lanes
from app.captioner.manifest import Golden, Manifest
from app.captioner.network import Network
from app.captioner.vocabulary import BOS, EOS, PAD, UNK

GOLDEN_MAX_PIXELS = 4_000_000
GOLDEN_TOLERANCE_BFLOAT16 = 0.5
"""In nats, of a whole caption. On dev images rounding moves a caption by .06 in the mean."""
_GPU_LANES = 2
"""One batch is copied over while the other is at work."""

_MARKS: dict[str, Any] = {"bos": BOS, "eos": EOS, "banned": (PAD, UNK)}

OnStage = Callable[[str, float, float], None]
OnRefused = Callable[[int, ImageError], None]


def _nobody(stage: str, began_s: float, ended_s: float) -> None:
    """Take no note of a stage."""


def _raised(image: int, error: ImageError) -> None:  # noqa: ARG001
    """Let the whole batch fail."""
    raise error


class Captioner:
    """A checkpoint on a device.

    Args:
        loaded: what `checkpoint.load` gave, or a network still in training.
        device: a torch device string.
        precision: of the large products, see `fused.fused` and, for a GPU, `recorded.prepared`.
        cores: of a CPU, for all calls of `caption` under way together; without it the number of
            torch's threads stays the caller's business.
        lanes: where batches run that have one core, if not in this process; they have loaded the
            same checkpoint. They are as many as the cores, eight at most.

    Raises:
        CheckpointError: the device lacks the precision.
    """

    def __init__(
        self,
        loaded: Checkpoint,
        *,
        device: str = "cpu",
        precision: Precision = "float32",
        cores: int | None = None,
        lanes: Lanes | None = None,
    ) -> None:
        self.device = torch.device(device)
        on_cpu = self.device.type == "cpu"
        self._cores = device_.Cores(cores) if cores is not None and on_cpu else None
        self.network = _prepared(loaded.network.to(self.device).eval(), precision)
        self.vocabulary = loaded.vocabulary
        self.manifest = loaded.manifest
        self._golden = loaded.golden
        self._geometry = loaded.manifest.image
        self._precision = precision
        self._lanes = lanes
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
            CheckpointError: the directory cannot be trusted, or the device lacks something.
        """
        return cls(
            checkpoint.load(directory),
            device=device,
            precision=precision,
            cores=cores,
        )

    @classmethod
    def load_in_lanes(
        cls, directory: Path, *, precision: Precision, cores: int, most_images: int
    ) -> Self:
        """Load a checkpoint for a CPU, with a process for each lane; see `lanes.Lanes`.

        A lone batch stays in this process: it has nobody to share Python's lock with.

        Args:
            directory: of the model store.
            precision: as for `load`.
            cores: of all lanes together, one lane each.
            most_images: in a batch beside others.

        Raises:
            CheckpointError: as for `load`.
            OSError: the system refuses what the processes need.
            DeviceFault: a process ended before it had loaded.
        """
        loaded = checkpoint.load(directory)
        size_px = loaded.manifest.image.size_px
        load = partial(cls._load_alike, directory, precision=precision, expected=loaded.manifest)
        lanes = Lanes(load, count=min(cores, MOST_LANES), most_images=most_images, size_px=size_px)
        return cls(loaded, precision=precision, cores=cores, lanes=lanes)

    @classmethod
    def _load_alike(cls, directory: Path, *, precision: Precision, expected: Manifest) -> Self:
        """Load what another process has loaded, and nothing that took its place since."""
        captioner = cls.load(directory, precision=precision)
        if captioner.manifest != expected:
            raise CheckpointError(f"checkpoint {directory} was exchanged while it was loaded")
        return captioner

    @property
    def lanes(self) -> int:
        """How many calls of `caption` may run side by side, each in a thread, with profit."""
        if self._recorder is not None:
            return _GPU_LANES
        return 1 if self._cores is None else self._cores.count

    @property
    def batches_cost_alike(self) -> bool:
        """Whether a large batch takes about as long as a small one, as on a GPU."""
        return self._recorder is not None

    def read(
        self, data: bytes, *, max_pixels: int, decode: decode_.Decode = decode_.decode
    ) -> Tensor:
        """Turn the bytes of a JPEG, PNG or WebP file into the network's square.

        Args:
            data: the file.
            max_pixels: width times height that the header may declare.
            decode: gives the pixels; `decoders.Decoders.decode` does so in another process.

        Returns:
            uint8 ``(3, S, S)`` on the CPU. Safe to call from several threads.

        Raises:
            ImageError: the upload is at fault; its subclass says how.
        """
        size_px = self._geometry.size_px
        pixels_HWC = decode(data, at_least_px=size_px, max_pixels=max_pixels)
        return image.fit(image.tensor(pixels_HWC), size_px=size_px, how=self._geometry.fit)

    def unread(self, data: bytes, *, max_pixels: int) -> Unread | None:
        """Take an upload as it is, if `caption` had better read it.

        So it had on a CPU: the core of a batch reads as well as any other, nothing is handed over
        twice, and whose caller leaves is not read at all. Not what takes long to decode: the others
        of the batch would wait for it.
        """
        quick = self._cores is not None and is_quick(data)
        return Unread(data, max_pixels) if quick else None

    def caption(
        self,
        images: Sequence[Tensor | Unread],
        *,
        on_stage: OnStage = _nobody,
        on_refused: OnRefused = _raised,
        wanted: beam.Wanted = beam.everybody,
        alone: bool = True,
    ) -> list[tuple[Caption, ...]]:
        """Caption one batch.

        Args:
            images: from `read` or `unread`.
            on_stage: told about ``decode``, if there is what was unread, ``encode`` and
                ``search``: when each began and ended, on the monotonic clock.
            on_refused: told about uploads that are at fault; without it the first one's error is
                raised.
            wanted: says whether somebody still waits for image b, and once it said no, says no for
                ever; asked before the search and after every step of it, on a GPU before the batch.
            alone: whether the process has nothing else to do, see `device.Cores`.

        Returns:
            Per image its candidates, best first, at most ``search.beam_width``. What was refused
            gets none, and whom nobody waits for may get none.

        Raises:
            OutOfMemory: the batch does not fit into the device; a smaller one may.
            DeviceFault: the device has failed for good.
        """
        captions: list[tuple[Caption, ...]] = [() for _ in images]
        findings = self.find(images, on_stage=on_stage, wanted=wanted, alone=alone)
        if findings.found is not None:
            told = captions_.told(findings.found, self.vocabulary)
            for b, candidates in zip(findings.images, told, strict=True):
                captions[b] = candidates
        for b, error in findings.refused.items():
            on_refused(b, error)
        return captions

    def find(
        self,
        images: Sequence[Tensor | Unread],
        *,
        on_stage: OnStage,
        wanted: beam.Wanted,
        alone: bool,
    ) -> Findings:
        """Do of `caption` what needs the device."""
        if self._cores is None:
            return self._find_here(images, on_stage, wanted)
        with self._cores.granted(alone=alone) as share:
            if self._lanes is not None and share.cores == 1:
                return self._lanes.find(images, share, on_stage=on_stage, wanted=wanted)
            with device_.limited_to(share):
                return self._find_here(images, on_stage, wanted)

    def _find_here(
        self, images: Sequence[Tensor | Unread], on_stage: OnStage, wanted: beam.Wanted
    ) -> Findings:
        return device_.guarded(partial(self._find, images, on_stage, wanted))

    @torch.inference_mode()
    def _find(
        self, images: Sequence[Tensor | Unread], on_stage: OnStage, wanted: beam.Wanted
    ) -> Findings:
        ready, refused = self._read_all(images, on_stage, wanted)
        if self._recorder is None:
            staying, found = self._find_in_steps(ready, on_stage, wanted)
        else:
            staying, found = _find_recorded(self._recorder, ready, on_stage, wanted)
        return Findings(staying, found, refused)

    def _read_all(
        self, images: Sequence[Tensor | Unread], on_stage: OnStage, wanted: beam.Wanted
    ) -> tuple[dict[int, Tensor], dict[int, ImageError]]:
        """Read what somebody waits for; give what is ready then, and what is at fault."""
        ready: dict[int, Tensor] = {}
        refused: dict[int, ImageError] = {}
        began_s = time.monotonic()
        for b, each in enumerate(images):
            if not isinstance(each, Unread):
                ready[b] = each
            elif wanted(b):
                try:
                    ready[b] = self.read(each.data, max_pixels=each.max_pixels)
                except ImageError as error:
                    refused[b] = error.with_traceback(None)
        if any(isinstance(each, Unread) for each in images):
            on_stage("decode", began_s, time.monotonic())
        return ready, refused

    def _find_in_steps(
        self, ready: dict[int, Tensor], on_stage: OnStage, wanted: beam.Wanted
    ) -> tuple[list[int], Found | None]:
        """Find the captions of the images that somebody still waits for after the encoder."""
        staying, found = list(ready), None
        began_s = encoded_s = time.monotonic()
        if ready:
            features_BRD = self.network.encoder(torch.stack(list(ready.values())).to(self.device))
            encoded_s = time.monotonic()
            rows = [n for n, b in enumerate(ready) if wanted(b)]
            staying = [staying[n] for n in rows]
            if rows:
                beams = self._search(features_BRD[rows], wanted=lambda n: wanted(staying[n]))
                found = Found.of(beams)
        on_stage("encode", began_s, encoded_s)
        on_stage("search", encoded_s, time.monotonic())
        return staying, found

    @torch.inference_mode()
    def caption_features(
        self, features_BRD: Tensor, *, wanted: beam.Wanted = beam.everybody
    ) -> list[tuple[Caption, ...]]:
        """Caption images whose features are at hand, as the trainer's are."""
        found = Found.of(self._search(features_BRD, wanted=wanted))
        return captions_.told(found, self.vocabulary)

    def _search(self, features_BRD: Tensor, *, wanted: beam.Wanted | None) -> beam.Beams:
        decoder, options = self.network.decoder, self.manifest.search
        if wanted is not None and compiled.suits(decoder, options):
            return compiled.search(decoder, features_BRD, options, **_MARKS, wanted=wanted)
        return beam.search(decoder, features_BRD, options, **_MARKS, wanted=wanted)

    def warm_up(self, batch_sizes: Iterable[int]) -> None:
        """Run each batch size once, with all cores and with one: no user pays for first times."""
        size_px = self._geometry.size_px
        blank = torch.zeros(3, size_px, size_px, dtype=torch.uint8)
        batches = [[blank] * size for size in batch_sizes]
        for batch in batches:
            for alone in (True, False) if self.lanes > 1 and self._lanes is None else (True,):
                self.caption(batch, alone=alone)
        if self._lanes is not None:
            self._lanes.warm_up(batches)

    @property
    def whole(self) -> bool:
        """Whether the processes of the lanes live, where there are any."""
        return self._lanes is None or self._lanes.whole

    def close(self) -> None:
        """End the processes of the lanes, where there are any."""
        if self._lanes is not None:
            self._lanes.close()

    def check_golden(self, *, decode: decode_.Decode = decode_.decode) -> None:
        """Say the golden caption; in bfloat16 it may be any of the candidates.

        Args:
            decode: as for `read`.

        Raises:
            CheckpointError: this machine says something else than the trainer's did.
        """
        if self._golden is None:
            raise CheckpointError(f"{self._name} has no golden caption: publish it with one")
        try:
            image = self.read(self._golden.image, max_pixels=GOLDEN_MAX_PIXELS, decode=decode)
        except ImageError as error:
            raise CheckpointError(f"{self._name}: its golden image: {error}") from None
        for alone in (True,) if self._lanes is None else (True, False):
            self._check(self.caption([image], alone=alone)[0], self._golden.said)

    @property
    def _name(self) -> str:
        return f"checkpoint {self.manifest.name}/{self.manifest.version}"

    def _check(self, candidates: tuple[Caption, ...], golden: Golden) -> None:
        if not candidates:
            raise CheckpointError(f"{self._name} says nothing of its golden image")
        best, tolerance = candidates[0], golden.tolerance
        if self._precision == "bfloat16":  # which of two close candidates wins is rounding
            tolerance = max(tolerance, GOLDEN_TOLERANCE_BFLOAT16)
            best = next((each for each in candidates if each.text == golden.caption), best)
        close = math.isclose(best.log_prob, golden.log_prob, rel_tol=0, abs_tol=tolerance)
        if best.text != golden.caption or not close:
            raise CheckpointError(
                f"{self._name}: the golden caption is {golden.caption!r} at "
                f"{golden.log_prob:.3f}, this machine says {best.text!r} at {best.log_prob:.3f}"
            )


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


def _find_recorded(
    recorder: recorded.Recorder, ready: dict[int, Tensor], on_stage: OnStage, wanted: beam.Wanted
) -> tuple[list[int], Found | None]:
    """Find the captions of the images that somebody still waits for, on a GPU."""
    began_s, search_s = time.monotonic(), 0.0
    staying, found = [b for b in ready if wanted(b)], None
    if staying:
        beams, search_s = recorder.caption([ready[b] for b in staying])
        found = Found.of(beams)
    ended_s = time.monotonic()
    on_stage("encode", began_s, ended_s - search_s)
    on_stage("search", ended_s - search_s, ended_s)
    return staying, found


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
