"""CaptionService: one upload from its bytes to its captions, and the threads that this needs.

The event loop gives batches to the inference threads, as many as run side by side with profit.
Uploads that take long to decode go through the decode threads before. Everything else happens on
the loop.
"""

import asyncio
import gc
import hashlib
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import structlog

from app.captioner.errors import (
    CheckpointError,
    DeviceFault,
    ImageError,
    NoDecoder,
    OutOfMemory,
)
from app.captioner.image.formats import cost_s
from app.observability.metrics import Metrics
from app.serving.batching import (
    NOBODY,
    Closed,
    DeadlineExceeded,
    DoesNotFit,
    Flow,
    MicroBatcher,
    Overloaded,
    OverShare,
    StillWaiting,
)
from app.serving.checkpoints import Checkpoints
from app.serving.decode_turns import COSTLY_S, Turn, Turns
from app.serving.health import Health
from app.serving.reloading import Found, Served, Store, identity, name_of
from app.serving.result_cache import ResultCache
from app.settings import MOST_WORKERS, Settings

if TYPE_CHECKING:  # the captioner brings Pillow and numpy, which a health check need not load
    from app.captioner.captions import Candidates, Caption, Word
    from app.captioner.engines.engine import Floats
    from app.captioner.image.decode import EncodedImage, Pixels
    from app.captioner.image.decode_processes import DecodeProcesses
    from app.serving.captioner import Captioner

Result = TypeVar("Result")
OnStage = Callable[[str, float, float], None]
_DecodeInTurn = Callable[[Turn, threading.Event], "Pixels"]
_Key = tuple[int, bytes]  # which captioner, and the sha256 of an upload
_MOST_OUT_OF_MEMORY = 6  # single images in a row that did not fit
_LARGE_BYTES = 256 * 1024
_DECODER_S = 1  # until there may be a process to decode in again
log: structlog.typing.FilteringBoundLogger = structlog.get_logger()


class _Image(NamedTuple):
    """An image that waits for a batch, and who read it and has to caption it, or to sum it up."""

    captioner: "Captioner"
    content: "Pixels | EncodedImage"
    summed_up: bool = False


@dataclass(frozen=True)
class _Captioned:
    """The candidates of one image, and when the stages of its batch began and ended."""

    candidates: "Candidates"
    stages: tuple[tuple[str, float, float], ...]


@dataclass(frozen=True)
class _SummedUp:
    """What the encoder made of one frame."""

    summary_W: "Floats"


_Answers = Sequence[_Captioned | _SummedUp | ImageError]


def _kind(image: _Image) -> Hashable:
    return id(image.captioner), image.summed_up


def _nobody(stage: str, began_s: float, ended_s: float) -> None:
    """Take no note of a stage."""


class CaptionService:
    """Captions uploads with the checkpoints that are served.

    Args:
        stores: Where they come from, one for each; at least one.
        settings: Limits, threads and timeouts.
        health: Told about each step of the life of the service.
        metrics: Told about each step of an upload.
        decoders: Where uploads are decoded that the captioner does not read in their batch; without
            them, or where the system gives no process, in threads, where nothing can end it.
    """

    def __init__(
        self,
        stores: Sequence[Store],
        *,
        settings: Settings,
        health: Health,
        metrics: Metrics,
        decoders: "DecodeProcesses | None" = None,
    ) -> None:
        self._settings = settings
        self._health = health
        self._metrics = metrics
        self.checkpoints = Checkpoints(stores, self._prepared, metrics, settings.canary)
        self._held = 0
        self._held_by: Counter[int | None] = Counter()
        self._decoders = decoders
        # Each talks to a process, and fits what comes back.
        self._readers = ThreadPoolExecutor(settings.decode_processes, thread_name_prefix="decode")
        # Two requests full of costly images may wait, and leave the queue to others.
        self._turns = Turns(settings.decode_processes, most_costly=2 * settings.max_images)
        # A thread starts when it is first needed: there are as many as the batcher has workers.
        self._inference = ThreadPoolExecutor(MOST_WORKERS, thread_name_prefix="inference")
        # Not of lower priority: it would be kept waiting while it holds the GIL, and all with it.
        self._loading = ThreadPoolExecutor(1, thread_name_prefix="load-checkpoint")
        self._jobs: set[Future[Any]] = set()
        self._starting: asyncio.Task[None] | None = None
        self._consecutive_out_of_memory = 0
        self._batcher: MicroBatcher[_Image, _Captioned | _SummedUp] = MicroBatcher(
            self._run_batch,
            max_batch=settings.max_batch,
            max_queue=settings.max_queue,
            max_queue_bytes=settings.max_queue_bytes,
            weigh=lambda image: image.content.nbytes,
            kind=_kind,
            watcher=metrics,
            on_crash=self._batcher_crashed,
        )
        self._results: ResultCache[_Key, Candidates] | None = None
        if settings.result_cache_entries:
            self._results = ResultCache(settings.result_cache_entries, on_lookup=metrics.looked_up)

    @property
    def served(self) -> Served:
        """What captions unless another is asked; there is one when the health lets work in."""
        return self.checkpoints.first

    @property
    def depth(self) -> int:
        """How many images wait for a batch."""
        return self._batcher.depth

    @property
    def batch_size_limit(self) -> int:
        """How many images a batch may have now."""
        return self._batcher.batch_size_limit

    def has_room(self, caller: int | None) -> bool:
        """Say whether one more image of this caller, of anybody for None, would be taken."""
        return self._held < self._settings.max_queue and not self._over_share(1, caller)

    def _over_share(self, images: int, caller: int | None) -> bool:
        """Say whether a key would hold more than its share; a lone key has no share."""
        if caller is None or len(self._settings.api_keys) < 2:
            return False
        return self._held_by[caller] + images > self._settings.max_queue_per_key

    @property
    def seconds_per_image(self) -> float:
        """What an image takes at present, all batches together."""
        return self._batcher.seconds_per_item

    # Request lifecycle

    @contextmanager
    def holding(self, images: int, caller: int | None = None) -> Iterator[None]:
        """Charge a request, and its caller, for all its images at once, before any work.

        Raises:
            Overloaded: They do not all fit.
            OverShare: They would fit, but not into the share of this caller.
        """
        if self._held + images > self._settings.max_queue:
            raise Overloaded(self.retry_after_s())
        if self._over_share(images, caller):
            raise OverShare(self._settings.max_queue_per_key, self.retry_after_s())
        self._hold(images, caller)
        try:
            yield
        finally:
            self._hold(-images, caller)

    def _hold(self, images: int, caller: int | None) -> None:
        self._held += images
        self._held_by[caller] += images

    async def caption(
        self,
        data: bytes,
        deadline_s: float,
        on_stage: OnStage = _nobody,
        flow: Flow = NOBODY,
        served: Served | None = None,
    ) -> "Candidates":
        """Caption one upload.

        Args:
            data: An image file.
            deadline_s: The moment on the loop's clock after which nobody wants the answer.
            on_stage: Told when ``decode``, ``queue``, ``encode`` and ``search`` began and ended, or
                ``cache`` alone where the result cache spared them.
            flow: Who it is for. What several wait for belongs to who asked first.
            served: Captions it, though another may have taken its place by now; the first one if
                None.

        Returns:
            The candidates, best first.

        Raises:
            ImageError: The upload is at fault.
            Overloaded: The queue is full.
            DeadlineExceeded: It took too long.
            Closed: The service is going away.
        """
        served = served or self.served
        if self._results is None:
            return await self._caption_uncached(data, deadline_s, on_stage, flow, served.captioner)
        return await self._caption_cached(
            self._results, data, deadline_s, on_stage, flow, served=served
        )

    async def caption_shot(
        self, shot: "Pixels", deadline_s: float, flow: Flow, served: Served
    ) -> "Candidates":
        """Caption frames of a clip that the captioner brought together, see its `shot`.

        Raises:
            Overloaded: The queue is full.
            DeadlineExceeded: It took too long.
            Closed: The service is going away.
        """
        image = _Image(served.captioner, shot)
        return (await self._submit(image, deadline_s, flow)).candidates

    async def summary_of(
        self, square: "Pixels", deadline_s: float, flow: Flow, served: Served
    ) -> "Floats":
        """Give ``summary_W``, what the encoder makes of a frame, without a caption.

        Raises:
            Overloaded: The queue is full.
            DeadlineExceeded: It took too long.
            Closed: The service is going away.
        """
        image = _Image(served.captioner, square, summed_up=True)
        answer = await self._batcher.submit(image, deadline_s, flow)
        if not isinstance(answer, _SummedUp):
            raise TypeError("a frame was to be summed up and was captioned")
        return answer.summary_W

    async def square_of(
        self, data: bytes, deadline_s: float, flow: Flow, served: Served
    ) -> "Pixels":
        """Give the network's square of an upload.

        Raises:
            ImageError: The upload is at fault.
            Overloaded: Nothing can be decoded now.
            DeadlineExceeded: It took too long.
        """
        decode = partial(self._decode, served.captioner, data)
        return await self._read(decode, self._cost_s(data), deadline_s, self._apart(flow))

    def retry_after_s(self) -> int:
        """Estimate when the images held now will be done."""
        return self._batcher.retry_after_s(self._held)

    async def _caption_cached(
        self,
        results: "ResultCache[_Key, Candidates]",
        data: bytes,
        deadline_s: float,
        on_stage: OnStage,
        flow: Flow,
        *,
        served: Served,
    ) -> "Candidates":
        """Give the candidates of the same bytes where they are known or on their way."""
        arrived_s = time.monotonic()
        key = (served.number, await _sha256(data))
        stages: list[tuple[str, float, float]] = []  # filled only if this very upload is captioned

        async def compute() -> "Candidates":
            captioned = await self._caption_uncached(
                data, math.inf, lambda *stage: stages.append(stage), flow, served.captioner
            )
            return captioned.told_as(map(_on_its_own, captioned))

        candidates = await results.get(key, compute, deadline_s)
        for stage in stages or [("cache", arrived_s, time.monotonic())]:
            on_stage(*stage)
        return candidates

    async def _caption_uncached(
        self,
        data: bytes,
        deadline_s: float,
        on_stage: OnStage,
        flow: Flow,
        captioner: "Captioner",
    ) -> "Candidates":
        """Take one upload through decoding, the queue and the network."""
        arrived_s = time.monotonic()
        encoded = captioner.encoded(data, max_pixels=self._settings.max_pixels)
        cost_s = 0.0 if encoded else self._cost_s(data)
        # A batch had better not wait for what is costly.
        with self._batcher.expecting() if cost_s < COSTLY_S else nullcontext():
            image = encoded or await self._read(
                partial(self._decode, captioner, data), cost_s, deadline_s, self._apart(flow)
            )
        queued_s = time.monotonic()
        captioned = await self._submit(_Image(captioner, image), deadline_s, flow)
        if not encoded:
            on_stage("decode", arrived_s, queued_s)
        on_stage("queue", queued_s, captioned.stages[0][1])
        for stage in captioned.stages:
            on_stage(*stage)
        return captioned.candidates

    async def _submit(self, image: _Image, deadline_s: float, flow: Flow) -> _Captioned:
        answer = await self._batcher.submit(image, deadline_s, flow)
        if not isinstance(answer, _Captioned):
            raise TypeError("an image was to be captioned and was summed up")
        return answer

    def _cost_s(self, data: bytes) -> float:
        """Estimate the CPU seconds of decoding, which its budget bounds."""
        return min(cost_s(data), self._settings.decode_cpu_s)

    def _apart(self, flow: Flow) -> Hashable:
        """Give the caller where there are several to tell apart."""
        return flow.caller if len(self._settings.api_keys) > 1 else None

    async def _read(
        self, decode: "_DecodeInTurn", cost_s: float, deadline_s: float, caller: Hashable
    ) -> "Pixels":
        try:
            async with asyncio.timeout_at(deadline_s):
                with self._metrics.decode_duration.time():
                    return await self._read_in_turn(decode, cost_s, deadline_s, caller)
        except TimeoutError:
            raise DeadlineExceeded from None
        except NoDecoder:
            raise Overloaded(_DECODER_S) from None
        except asyncio.CancelledError:
            self._metrics.cancelled("decode")
            raise

    async def _read_in_turn(
        self, decode: "_DecodeInTurn", cost_s: float, deadline_s: float, caller: Hashable
    ) -> "Pixels":
        loop = asyncio.get_running_loop()
        timeout_s = min(deadline_s - loop.time(), self._settings.deadline_s)
        turn = await self._turns.take(cost_s, timeout_s, caller)
        left = threading.Event()

        def leave(_: "Future[Pixels]") -> None:  # in the thread: a caller may leave before
            done = not left.is_set()
            with suppress(RuntimeError):  # the loop is gone, and nobody waits for a turn
                loop.call_soon_threadsafe(partial(self._turns.leave, turn, done=done))

        try:
            job = self._readers.submit(decode, turn, left)
        except RuntimeError:  # the system gives no thread
            self._turns.leave(turn, done=False)
            raise NoDecoder from None
        job.add_done_callback(leave)
        try:
            return await asyncio.wrap_future(job)
        finally:
            left.set()

    def _decode(
        self, captioner: "Captioner", data: bytes, turn: Turn, left: threading.Event
    ) -> "Pixels":
        max_pixels = self._settings.max_pixels
        if self._decoders is None:
            return captioner.read(data, max_pixels=max_pixels)
        decode = partial(
            self._decoders.decode, costly=turn.costly, wanted=lambda: not left.is_set()
        )
        return captioner.read(data, max_pixels=max_pixels, decode=decode)

    async def _run_batch(self, images: list[_Image], still_waiting: StillWaiting) -> _Answers:
        try:
            captioned = await self._in_inference_thread(
                partial(self._forward, images, still_waiting)
            )
        except OutOfMemory:
            self._note_out_of_memory(len(images))
            raise DoesNotFit from None
        except DeviceFault as fault:
            self._health.fail(fault.code)
            log.exception(fault.code)
            raise Closed from None
        self._consecutive_out_of_memory = 0
        return captioned

    def _note_out_of_memory(self, images: int) -> None:
        """Give up once not even single images fit: whoever holds the memory may be ourselves."""
        self._metrics.out_of_memory.inc()
        log.warning("out_of_memory", images=images)
        self._consecutive_out_of_memory += images == 1
        if self._consecutive_out_of_memory >= _MOST_OUT_OF_MEMORY:
            self._health.fail("out_of_memory")

    def _forward(self, images: list[_Image], still_waiting: StillWaiting) -> _Answers:
        """Caption a batch, or sum up frames of clips; all of it is of one kind, see `_kind`."""
        if images[0].summed_up:
            return self._summed_up(images)
        return self._captioned(images, still_waiting)

    def _summed_up(self, images: list[_Image]) -> _Answers:
        """Encode frames of one captioner; they are squares, each of them."""
        began_s = time.monotonic()
        captioner = images[0].captioner
        squares: list[Any] = [image.content for image in images]
        summary_BW = captioner.summaries(squares)
        seconds = time.monotonic() - began_s
        self._metrics.computed("encode", seconds, len(images), name_of(captioner))
        return [_SummedUp(summary_W) for summary_W in summary_BW]

    def _captioned(self, images: list[_Image], still_waiting: StillWaiting) -> _Answers:
        """Caption images of one captioner."""
        captioner = images[0].captioner
        result = captioner.caption([image.content for image in images], still_waiting)
        for stage in result.stages:
            seconds = stage.ended_s - stage.began_s
            self._metrics.computed(stage.name, seconds, len(images), name_of(captioner))
        return [
            result.refused.get(n) or _Captioned(candidates, result.stages)
            for n, candidates in enumerate(result.captions)
        ]

    async def _in_inference_thread(self, job: Callable[[], Result]) -> Result:
        def beating() -> Result:
            with self._health.heartbeat:
                return job()

        return await self._in_thread(self._inference, beating)

    async def _in_thread(self, pool: ThreadPoolExecutor, job: Callable[[], Result]) -> Result:
        begun = pool.submit(job)
        self._jobs.add(begun)
        begun.add_done_callback(self._jobs.discard)
        return await asyncio.wrap_future(begun)

    # Start and end

    def start(self) -> None:
        """Begin to load in the background."""
        self._starting = asyncio.create_task(self._start(), name="load-checkpoint")

    async def close(self) -> None:
        """Answer what waits, then let go of the threads. Bounded by ``drain_timeout_s``."""
        self._health.refuse()
        await self._stop(self._starting)
        await self.checkpoints.close()
        loop = asyncio.get_running_loop()
        timeout_s = self._settings.drain_timeout_s if self._health.livez().ok else 0.0
        ends_s = loop.time() + timeout_s
        await self._batcher.close(timeout_s)
        idle = await self._wait_until_idle(ends_s - loop.time())
        if self._decoders is not None:
            await asyncio.to_thread(self._decoders.close)
        self._readers.shutdown(wait=idle, cancel_futures=True)
        self._inference.shutdown(wait=idle, cancel_futures=True)
        self._loading.shutdown(wait=idle, cancel_futures=True)
        gc.unfreeze()

    async def _start(self) -> None:
        try:
            await self._make_ready()
        except CheckpointError as error:
            log.error("checkpoint_refused", reason=str(error))  # noqa: TRY400 - the reason says it all
            self._health.fail("checkpoint_refused")
        except Exception:
            log.exception("start_failed")
            self._health.fail("start_failed")

    async def _make_ready(self) -> None:
        started_s = time.perf_counter()
        if self._decoders is not None:
            self._decoders.start()  # they import while the checkpoint is loaded
        loaded = [await self._loaded(number) for number in range(len(self.checkpoints.places))]
        self._health.warming()
        for captioner, _ in loaded:
            await self._in_inference_thread(partial(captioner.warm_up, self._batch_sizes()))
        self._decoders = await self._decoders_at_work()
        for number, (captioner, found) in enumerate(loaded):
            with self._telling(number):
                await self._in_inference_thread(partial(self._check_golden, captioner))
                self.checkpoints.places[number].serve(captioner, found)
        engine = self.served.captioner.engine
        half = max(1, self._settings.max_batch // 2)
        self._batcher.start(
            engine.max_concurrent_batches,
            min_concurrent_batch=half if engine.batches_cost_alike else 1,
        )
        # What is here now stays: a full collection that walks all of it would hold up every thread.
        gc.freeze()
        self._health.ready()
        self._tell_ready(time.perf_counter() - started_s)
        if self._settings.watch:
            self.checkpoints.watch(self._settings.watch)

    def _tell_ready(self, seconds: float) -> None:
        first, *others = (served.captioner for served in self.checkpoints.served)
        more = {"others": [name_of(captioner) for captioner in others]} if others else {}
        log.info("ready", seconds=round(seconds, 2), **identity(first), **more)

    async def _loaded(self, number: int) -> "tuple[Captioner, Found]":
        place = self.checkpoints.places[number]
        with self._telling(number):
            found = await place.find()
            load = partial(place.store.load, found.directory)
            return await self._in_inference_thread(load), found

    @contextmanager
    def _telling(self, number: int) -> Iterator[None]:
        """Say which checkpoint cannot be served, where there are several."""
        try:
            yield
        except CheckpointError as error:
            if len(self.checkpoints.places) == 1:
                raise
            told = f"number {number + 1} of CAPTION_CHECKPOINTS: {error}"
            raise CheckpointError(told) from None

    async def _prepared(self, store: Store, directory: Path) -> "Captioner":
        """Make a captioner ready to serve while another one serves."""
        return await self._in_thread(self._loading, partial(self._prepare, store, directory))

    def _prepare(self, store: Store, directory: Path) -> "Captioner":
        captioner = store.load(directory, beside=True)
        captioner.warm_up(self._batch_sizes())
        self._check_golden(captioner)
        return captioner

    def _check_golden(self, captioner: "Captioner") -> None:
        if self._decoders is None:
            captioner.check_golden()
        else:
            captioner.check_golden(decode=self._decoders.decode)

    async def _decoders_at_work(self) -> "DecodeProcesses | None":
        """Give the decode processes once there is one; None where the system gives none."""
        if self._decoders is None:
            return None
        try:
            await asyncio.to_thread(self._decoders.wait)
        except OSError as error:
            log.warning("no_decode_processes", reason=str(error))
            await asyncio.to_thread(self._decoders.close)
            return None
        return self._decoders

    def _batch_sizes(self) -> list[int]:
        """Give the powers of two below the largest batch, and that."""
        largest = self._settings.max_batch
        return [*(2**n for n in range(largest.bit_length()) if 2**n < largest), largest]

    async def _stop(self, *tasks: "asyncio.Task[None] | None") -> None:
        for task in tasks:
            if task is not None:
                task.cancel()
                await asyncio.wait({task})

    async def _wait_until_idle(self, timeout_s: float) -> bool:
        """Wait for the inference threads to come to the end of their jobs; say whether they did."""
        jobs = {asyncio.wrap_future(job) for job in list(self._jobs)}
        if not jobs:
            return True
        _, late = await asyncio.wait(jobs, timeout=max(0.0, timeout_s))
        return not late

    def _batcher_crashed(self, error: BaseException) -> None:
        log.error("batcher_crashed", exc_info=error)
        self._health.fail("batcher_crashed")


async def _sha256(data: bytes) -> bytes:
    if len(data) < _LARGE_BYTES:
        return hashlib.sha256(data).digest()
    # The loop has probes to answer.
    return await asyncio.to_thread(lambda: hashlib.sha256(data).digest())


def _on_its_own(caption: "Caption") -> "Caption":
    """Copy the attention: it is a view of the whole batch's, all of which would be kept."""
    return replace(caption, words=tuple(map(_word_on_its_own, caption.words)))


def _word_on_its_own(word: "Word") -> "Word":
    return word if word.attention is None else word._replace(attention=word.attention.copy())
