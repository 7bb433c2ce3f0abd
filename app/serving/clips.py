"""Clips: the way of one from its bytes to its described shots, beside photos and not before them.

Frames are read ahead by a few, summed up by the encoder in the batches of photos, and given on in
their order. A shot is captioned from several of its frames. What is held of a clip besides its
bytes does not grow with its length.
"""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

from app.captioner.errors import NoDecoder
from app.captioner.presentation import Presentation, told
from app.clips.described import DescribedShot, Merging
from app.clips.processes import ClipProcesses, ClipReader
from app.clips.sampling import End, Frame, Sampling
from app.clips.shots import Look, Shot, ShotFinder, histogram
from app.serving.batching import DeadlineExceeded, Flow, Overloaded
from app.serving.decode_turns import COSTLY_S, Turn, Turns
from app.serving.reloading import Served
from app.serving.service import CaptionService
from app.settings import Settings

Result = TypeVar("Result")
FRAMES_AHEAD = 4
"""Frames of a clip that are in the queue or in a batch, at most."""
_COST_S_PER_BYTE = 1e-6  # of a whole clip; the queue learns how far it is off
_WAITING = 8  # clips for each that is read
_DECODER_S = 1


@dataclass(frozen=True)
class ClipRequest:
    """A clip that is to be described, and for whom.

    Attributes:
        threshold: of `ShotFinder`.
        how: its shots are told.
        deadline_s: the moment on the loop's clock after which nobody wants the answer.
        flow: who it is for.
        served: captions it.
    """

    threshold: float
    how: Presentation
    deadline_s: float
    flow: Flow
    served: Served


class _Looked(NamedTuple):
    frame: Frame
    look: Look


class Clips:
    """Describes clips.

    Args:
        service: Encodes and captions frames, in its batches.
        settings: Limits and threads.
        processes: Where clips are read.
    """

    def __init__(
        self, service: CaptionService, *, settings: Settings, processes: ClipProcesses
    ) -> None:
        self._service = service
        self._settings = settings
        self._processes = processes
        self._readers = ThreadPoolExecutor(settings.clip_processes, thread_name_prefix="clip")
        self._turns = Turns(settings.clip_processes, most_costly=_WAITING * settings.clip_processes)

    @property
    def frames_held(self) -> int:
        """For how many images of photos a clip counts."""
        return min(FRAMES_AHEAD, self._settings.max_queue_per_key)

    def sampling(self, fps: float, max_frames: int, served: Served) -> Sampling:
        """Say how a clip is read for the captioner that is served."""
        about = served.captioner.manifest.image
        return Sampling.within(self._settings, about, fps=fps, max_frames=max_frames)

    async def describe(
        self, frames: AsyncGenerator[Frame | End, None], asked: ClipRequest
    ) -> AsyncGenerator[DescribedShot | End, None]:
        """Give the shots of a clip as they are ready, and its end last.

        Args:
            frames: from `frames_of` or `frames_of_images`.
            asked: how, and for whom.

        Raises:
            ImageError: The clip is at fault.
            Overloaded: The queue is full, or no clip can be read now.
            DeadlineExceeded: It took too long.
            Closed: The service is going away.
        """
        finder, merging = ShotFinder(asked.threshold), Merging()
        async with aclosing(self._looked(frames, asked)) as looked:
            async for each in looked:
                if isinstance(each, End):
                    ended, end = finder.end(each.duration_s), each
                else:
                    ended, end = [s for s in [finder.add(*each)] if s], None
                for shot in ended:
                    if (before := merging.add(await self._described(shot, asked))) is not None:
                        yield before
                if end is not None:
                    if (last := merging.end()) is not None:
                        yield last
                    yield end

    async def frames_of(
        self, clip: bytes, how: Sampling, deadline_s: float, caller: Hashable
    ) -> AsyncGenerator[Frame | End, None]:
        """Read a clip in a process.

        Raises:
            Still: It is an image that does not move.
            ImageError: The clip is at fault.
            Overloaded: No clip can be read now.
            DeadlineExceeded: It took too long.
        """
        left = threading.Event()
        reader = self._processes.read(clip, how, wanted=lambda: not left.is_set())
        turn = await self._turn(len(clip), deadline_s, caller)
        try:
            while True:
                each = await self._read(reader, deadline_s)
                yield each
                if isinstance(each, End):
                    return
        finally:
            left.set()
            self._let_go(reader, turn)

    async def frames_of_images(
        self, images: Sequence[bytes], fps: float, asked: ClipRequest
    ) -> AsyncGenerator[Frame | End, None]:
        """Read images, each a frame, shown one after another for as long.

        Raises:
            ImageError: One of them is at fault.
            Overloaded: Nothing can be decoded now.
            DeadlineExceeded: It took too long.
        """
        for number, data in enumerate(images):
            square = await self._service.square_of(data, asked.deadline_s, asked.flow, asked.served)
            yield Frame(number / fps, square)
        yield End(len(images) / fps)

    async def close(self) -> None:
        """End the processes and the threads."""
        await asyncio.to_thread(self._processes.close)
        self._readers.shutdown(wait=True, cancel_futures=True)

    async def _described(self, shot: Shot, asked: ClipRequest) -> DescribedShot:
        frames = asked.served.captioner.shot([frame.pixels for frame in shot.looked_at])
        candidates = await self._service.caption_shot(
            frames, asked.deadline_s, asked.flow, asked.served
        )
        how = told(candidates, asked.how)
        return DescribedShot(shot.start_s, shot.end_s, shot.keyframe.time_s, how)

    async def _looked(
        self, frames: AsyncGenerator[Frame | End, None], asked: ClipRequest
    ) -> AsyncGenerator[_Looked | End, None]:
        """Give each frame with what it is compared by; a few are in the queue at any time."""
        pending: deque[tuple[Frame, asyncio.Task[Look]]] = deque()
        try:
            async with aclosing(frames) as read:
                async for each in read:
                    if isinstance(each, End):
                        while pending:
                            yield await _first(pending)
                        yield each
                        return
                    task = asyncio.create_task(self._look(each, asked), name="frame")
                    pending.append((each, task))
                    if len(pending) >= self.frames_held:
                        yield await _first(pending)
        finally:
            for _, task in pending:
                task.cancel()
            await asyncio.gather(*(task for _, task in pending), return_exceptions=True)

    async def _look(self, frame: Frame, asked: ClipRequest) -> Look:
        summary_W = await self._service.summary_of(
            frame.pixels, asked.deadline_s, asked.flow, asked.served
        )
        return Look(summary_W, histogram(frame.pixels))

    async def _turn(self, size: int, deadline_s: float, caller: Hashable) -> Turn:
        """Wait for a place among the clips that are read."""
        cost_s = max(COSTLY_S, _COST_S_PER_BYTE * size)
        timeout_s = deadline_s - asyncio.get_running_loop().time()
        apart = caller if len(self._settings.api_keys) > 1 else None
        try:
            async with asyncio.timeout_at(deadline_s):
                return await self._turns.take(cost_s, timeout_s, apart)
        except TimeoutError:
            raise DeadlineExceeded from None

    async def _read(self, reader: ClipReader, deadline_s: float) -> Frame | End:
        try:
            async with asyncio.timeout_at(deadline_s):
                return await self._in_thread(reader.next)
        except TimeoutError:
            raise DeadlineExceeded from None
        except NoDecoder:
            raise Overloaded(_DECODER_S) from None

    async def _in_thread(self, job: Callable[[], Result]) -> Result:
        try:
            begun = self._readers.submit(job)
        except RuntimeError:  # the system gives no thread, or it is over
            raise NoDecoder from None
        return await asyncio.wrap_future(begun)

    def _let_go(self, reader: ClipReader, turn: Turn) -> None:
        """Let go of a process, once its thread has; the next clip may have its place then."""
        loop = asyncio.get_running_loop()

        def leave(_: "Future[Any] | None" = None) -> None:
            with suppress(RuntimeError):  # the loop is gone, and nobody waits for a turn
                loop.call_soon_threadsafe(partial(self._turns.leave, turn))

        try:
            self._readers.submit(reader.close).add_done_callback(leave)
        except RuntimeError:  # it is over: the processes have been ended
            leave()


async def _first(pending: "deque[tuple[Frame, asyncio.Task[Look]]]") -> _Looked:
    """Give the first frame once it is summed up; it stays pending until then."""
    frame, task = pending[0]
    look = await task
    pending.popleft()
    return _Looked(frame, look)
