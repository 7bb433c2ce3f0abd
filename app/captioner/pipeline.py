"""Captioner: uploads -> pixels -> beams -> captions.

B images, S side of the network's square, F frames of a shot
"""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from app.captioner import checkpoint as checkpoint_
from app.captioner.architecture import attention_rows
from app.captioner.captions import Candidates, Caption, to_captions
from app.captioner.checkpoint import Checkpoint, GoldenSample
from app.captioner.confidence import ConfidenceModel
from app.captioner.engines.engine import Engine, Floats, Precision, Stage
from app.captioner.errors import CheckpointError, ImageError
from app.captioner.image import decode as decode_
from app.captioner.image.decode import EncodedImage, Pixels, is_quick
from app.captioner.image.fit import fit, is_one_colour
from app.captioner.image.frames import evenly, frames_of, shot_of
from app.captioner.manifest import Golden, Manifest
from app.captioner.search import StillWaiting, always_waiting
from app.captioner.vocabulary import Vocabulary

GOLDEN_MAX_PIXELS = 4_000_000
SHOT_FRAMES = 8
"""So many frames of a shot are looked at, if a network was not trained to read another number."""
GOLDEN_TOLERANCE_REDUCED = 0.5
"""In nats, of a whole caption in bfloat16 or int8. Rounding moves one by .06 in the mean."""


class BatchResult(NamedTuple):
    """What became of the images of a batch.

    Attributes:
        captions: per image its candidates, best first, at most ``search.beam_width``; none for one
            that was refused, and perhaps for one that nobody waits for.
        refused: what is at fault with an image, by its number.
        stages: ``decode`` (if anything was), ``encode`` and ``search``.
    """

    captions: tuple[Candidates, ...]
    refused: Mapping[int, ImageError]
    stages: tuple[Stage, ...]


class Captioner:
    """A network with its words. Safe to use from several threads.

    Args:
        engine: where the network runs.
        vocabulary: its words.
        manifest: what it is.
        golden: what it must say, and of which image; only `check_golden` wants it.
        confidence: says how far captions can be trusted.
        precision: of the engine, for the tolerance of the golden caption.
    """

    def __init__(
        self,
        engine: Engine,
        vocabulary: Vocabulary,
        manifest: Manifest,
        *,
        golden: GoldenSample | None = None,
        confidence: ConfidenceModel | None = None,
        precision: Precision = "float32",
    ) -> None:
        self.engine = engine
        self.vocabulary = vocabulary
        self.manifest = manifest
        self.precision = precision
        self._golden = golden
        self._confidence = confidence
        self._geometry = manifest.image

    @classmethod
    def load(
        cls,
        directory: Path,
        *,
        device: str = "cpu",
        precision: Precision | None = None,
        workers: int = 1,
        beside: bool = False,
    ) -> Self:
        """Load and verify a directory of the model store.

        Args:
            directory: of the model store, or a run's ``best``.
            device: ``cpu``, or a CUDA device as torch names it.
            precision: what the device computes fastest at the same dev scores, unless given.
            workers: batches side by side on a CPU, a core each.
            beside: whether another captioner is at work, which is left all cores but one.

        Raises:
            CheckpointError: the directory cannot be trusted, or the device lacks the precision.
        """
        return cls.of(
            checkpoint_.load(directory),
            device=device,
            precision=precision,
            workers=workers,
            beside=beside,
        )

    @classmethod
    def of(
        cls,
        loaded: Checkpoint,
        *,
        device: str = "cpu",
        precision: Precision | None = None,
        workers: int = 1,
        beside: bool = False,
    ) -> Self:
        """Put a loaded checkpoint on a device; see `load`."""
        engine: Engine
        if device == "cpu":
            from app.captioner.engines import cpu  # noqa: PLC0415 - an engine brings its library

            precision = precision or cpu.fastest_precision(loaded)
            engine = cpu.CpuEngine(loaded, precision=precision, workers=workers, beside=beside)
        else:
            from app.captioner.engines import gpu  # noqa: PLC0415

            precision = precision or gpu.fastest_precision()
            engine = gpu.GpuEngine(loaded, device=device, precision=precision)
        return cls(
            engine,
            loaded.vocabulary,
            loaded.manifest,
            golden=loaded.golden,
            confidence=loaded.confidence,
            precision=precision,
        )

    def read(
        self, data: bytes, *, max_pixels: int, decode: decode_.Decode = decode_.decode
    ) -> Pixels:
        """Turn the bytes of an image file into the network's square.

        Args:
            data: the file.
            max_pixels: width times height that the header may declare.
            decode: gives the pixels; `decode_processes.DecodeProcesses` does so in another process.

        Returns:
            uint8 ``(S, S, 3)``. Safe to call from several threads.

        Raises:
            ImageError: the upload is at fault; its subclass says how.
        """
        about = self._geometry
        pixels_HWC = decode(data, at_least_px=about.size_px, max_pixels=max_pixels)
        return fit(pixels_HWC, size_px=about.size_px, how=about.fit, resampling=about.resampling)

    def encoded(self, data: bytes, *, max_pixels: int) -> EncodedImage | None:
        """Take an upload as it is, if `caption` had better decode it in its batch.

        Nothing is handed over twice then, and an upload whose caller leaves is not decoded at all.
        What takes long to decode would keep the others of the batch waiting, and on a GPU the
        device.
        """
        quick = not self.engine.batches_cost_alike and is_quick(data)
        return EncodedImage(data, max_pixels) if quick else None

    def caption(
        self,
        images: Sequence[Pixels | EncodedImage],
        still_waiting: StillWaiting = always_waiting,
    ) -> BatchResult:
        """Caption one batch.

        Args:
            images: from `read`, `encoded` or `shot`.
            still_waiting: says whether somebody still waits for image b; see `engine.Engine.run`.

        Raises:
            OutOfMemory: the batch does not fit into the device; a smaller one may.
            DeviceFault: the device has failed for good.
        """
        ready, refused, stages = self._read_all(images, still_waiting)
        captions = [Candidates() for _ in images]
        for frames in dict.fromkeys(len(frames_of(image)) for image in ready.values()):
            alike = {b: image for b, image in ready.items() if len(frames_of(image)) == frames}
            told, taken = self._told(alike, still_waiting)
            stages += taken
            for b, candidates in told.items():
                captions[b] = candidates
        return BatchResult(tuple(captions), refused, stages)

    def shot(self, frames: Sequence[Pixels]) -> Pixels:
        """Bring the frames of a shot together, for `caption` to describe as one image.

        A network of clips reads them in their order. One of photos looks for each word at all
        regions of all frames (attention), or at the mean of the frames.

        Args:
            frames: from `read`, in their order. Of more than `SHOT_FRAMES` so many are looked at,
                evenly spread; by a network of clips as many as it was trained to read.

        Returns:
            uint8 ``(F, S, S, 3)``; of one frame alone ``(S, S, 3)``, for the caption of a photo.

        Raises:
            ValueError: there is no frame.
        """
        trained = self.manifest.architecture.frames_per_clip
        count = trained or min(SHOT_FRAMES, len(frames))
        return shot_of(frames, evenly(len(frames), count))

    def caption_frames(self, frames: Sequence[Pixels]) -> Candidates:
        """Caption one shot; see `shot`, and `caption` for several at once.

        Raises:
            ValueError: there is no frame.
            OutOfMemory: it does not fit into the device.
            DeviceFault: the device has failed for good.
        """
        (candidates,) = self.caption([self.shot(frames)]).captions
        return candidates

    def _told(
        self, images: Mapping[int, Pixels], still_waiting: StillWaiting
    ) -> tuple[dict[int, Candidates], tuple[Stage, ...]]:
        """Caption what has the same number of frames: candidates by number, and the stages."""
        numbers = list(images)
        found = self.engine.run(list(images.values()), lambda n: still_waiting(numbers[n]))
        if found.beams is None:
            return {}, found.stages
        rows = attention_rows(self.manifest.architecture)
        candidates = to_captions(found.beams, self.vocabulary, self._confidence, rows)
        told = dict(zip((numbers[n] for n in found.images), candidates, strict=True))
        for b, each in told.items():
            frames = frames_of(images[b])
            each.one_colour = all(is_one_colour(frame, self._geometry.fit) for frame in frames)
        return told, found.stages

    def summaries(self, images: Sequence[Pixels]) -> Floats:
        """Give ``summary_BW`` of one batch, each image in one vector, and search no captions.

        Args:
            images: from `read`.

        Raises:
            OutOfMemory: the batch does not fit into the device; a smaller one may.
            DeviceFault: the device has failed for good.
        """
        return self.engine.summaries(images)

    def _read_all(
        self, images: Sequence[Pixels | EncodedImage], still_waiting: StillWaiting
    ) -> tuple[dict[int, Pixels], dict[int, ImageError], tuple[Stage, ...]]:
        """Decode what somebody waits for; give what is ready then, and what is at fault."""
        ready: dict[int, Pixels] = {}
        refused: dict[int, ImageError] = {}
        began_s = time.monotonic()
        for b, each in enumerate(images):
            if not isinstance(each, EncodedImage):
                ready[b] = each
            elif still_waiting(b):
                try:
                    ready[b] = self.read(each.data, max_pixels=each.max_pixels)
                except ImageError as error:
                    refused[b] = error.with_traceback(None)
        if not any(isinstance(each, EncodedImage) for each in images):
            return ready, refused, ()
        return ready, refused, (Stage("decode", began_s, time.monotonic()),)

    def warm_up(self, batch_sizes: Iterable[int]) -> None:
        """Run each batch size once, so that no user pays for first times."""
        size_px = self._geometry.size_px
        blank = np.zeros((size_px, size_px, 3), np.uint8)
        for size in batch_sizes:
            self.engine.warm_up([blank] * size)

    def check_golden(self, *, decode: decode_.Decode = decode_.decode) -> None:
        """Say the golden caption; in reduced precision it may be any of the candidates.

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
        self._check(self.caption([image]).captions[0], self._golden.said)

    @property
    def _name(self) -> str:
        return f"checkpoint {self.manifest.name}/{self.manifest.version}"

    def _check(self, candidates: tuple[Caption, ...], golden: Golden) -> None:
        if not candidates:
            raise CheckpointError(f"{self._name} says nothing of its golden image")
        best, tolerance = candidates[0], golden.tolerance
        said = golden.int8 if self.precision == "int8" and golden.int8 else golden
        if self.precision != "float32":  # which of two close candidates wins is rounding
            tolerance = max(tolerance, GOLDEN_TOLERANCE_REDUCED)
            best = next((each for each in candidates if each.text == said.caption), best)
        close = math.isclose(best.log_prob, said.log_prob, rel_tol=0, abs_tol=tolerance)
        if best.text != said.caption or not close:
            raise CheckpointError(
                f"{self._name}: the golden caption is {said.caption!r} at {said.log_prob:.3f}, "
                f"this machine says {best.text!r} at {best.log_prob:.3f}"
            )
