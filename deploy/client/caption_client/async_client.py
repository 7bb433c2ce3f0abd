"""The client for programs with asyncio's event loop."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import aclosing
from os import PathLike
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx

from caption_client.errors import CaptionError
from caption_client.exchange import (
    CLIP_DEADLINE_S,
    JSON,
    LINES,
    Answer,
    ClipOptions,
    Exchange,
    Options,
    TrackFormat,
    client_options,
    track_type,
)
from caption_client.images import images_in
from caption_client.models import Caption, Clip, File, Image, Result, Shot

Of = TypeVar("Of", bound=Image)


class AsyncClient:
    """Asks one service. Many tasks may use it; close it, or use it with ``async with``.

    Args:
        url: Of the service, such as ``http://localhost:8000``.
        key: An API key, where the service wants one.
        deadline_s: Seconds for each image, retries included.
        retries: How often an image is tried again.
        transport: Of httpx; for tests and for proxies.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        deadline_s: float = 30.0,
        retries: int = 4,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._http = httpx.AsyncClient(transport=transport, **client_options(url, key))
        self._deadline_s = deadline_s
        self._retries = retries

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def caption(self, image: Image, **asked: Any) -> Caption:
        """Caption one image; its file is read in a thread.

        Args:
            image: A path, bytes or an open file.
            asked: As the members of `Options`: ``n_best=3``, ``neutral=True`` and so on.

        Raises:
            CaptionError: It has no caption; the subclass says why.
            OSError: Its file cannot be read.
        """
        exchange = await self._exchange(image, Options(**asked), self._deadline_s)
        return await self._answered(exchange, exchange.caption)

    async def describe(
        self, clip: File, *, deadline_s: float = CLIP_DEADLINE_S, **asked: Any
    ) -> Clip:
        """Describe the shots of one clip.

        Args:
            clip: A path, bytes or an open file, of a GIF, a video or an image.
            deadline_s: Seconds for it, retries included.
            asked: As the members of `ClipOptions`: ``fps=1``, ``neutral=True`` and so on.

        Raises:
            CaptionError: It has no captions; the subclass says why.
            OSError: Its file cannot be read.
        """
        exchange = await self._exchange(clip, ClipOptions(**asked), deadline_s)
        return await self._answered(exchange, exchange.clip)

    async def track(
        self,
        clip: File,
        format: TrackFormat = "vtt",  # noqa: A002 - as the service calls it
        *,
        deadline_s: float = CLIP_DEADLINE_S,
        **asked: Any,
    ) -> str:
        """Describe the shots of one clip as a track for players.

        Args:
            clip: As for `describe`.
            format: ``vtt`` for WebVTT, ``srt`` for SRT.
            deadline_s: As for `describe`.
            asked: As for `describe`; of the candidates, only the best has a cue.

        Raises:
            ValueError: There is no such format.
            CaptionError: As for `describe`.
            OSError: Its file cannot be read.
        """
        accept = track_type(format)
        exchange = await self._exchange(clip, ClipOptions(**asked), deadline_s, accept)
        return await self._answered(exchange, exchange.track)

    def shots(
        self, clip: File, *, deadline_s: float = CLIP_DEADLINE_S, **asked: Any
    ) -> AsyncIterator[Shot]:
        """Describe the shots of one clip, and give each as soon as the service knows it.

        Once the first is there, nothing is tried again. Who stops early ends the work.

        Args:
            clip: As for `describe`; its file is read when the first shot is asked for.
            deadline_s: Seconds to wait for all of them, retries included; what is done between
                two shots does not count.
            asked: As for `describe`.

        Raises:
            CaptionError: As for `describe`; some shots may have been given.
            OSError: Its file cannot be read.
        """
        return self._shots(clip, ClipOptions(**asked), deadline_s)

    async def _shots(
        self, clip: File, options: ClipOptions, deadline_s: float
    ) -> AsyncIterator[Shot]:
        exchange = await self._exchange(clip, options, deadline_s, LINES)
        while not exchange.has_ended:
            try:
                async with aclosing(self._streamed(exchange)) as shots:
                    async for shot in shots:
                        yield shot
            except CaptionError as error:
                await asyncio.sleep(exchange.delay_s(error))

    async def _streamed(self, exchange: Exchange) -> AsyncGenerator[Shot, None]:
        try:
            async with self._http.stream("POST", **exchange.request()) as answer:
                if answer.status_code != 200:
                    await answer.aread()
                exchange.check(answer)
                async for line in answer.aiter_lines():
                    if shot := exchange.shot(line):
                        with exchange.paused():
                            yield shot
        except httpx.HTTPError as error:
            raise exchange.error(error) from error
        exchange.check_ended()

    async def _exchange(
        self, file: File, options: Options | ClipOptions, deadline_s: float, accept: str = JSON
    ) -> Exchange:
        return await asyncio.to_thread(
            Exchange.of, file, options, deadline_s, self._retries, accept
        )

    async def _answered(
        self, exchange: Exchange, read: Callable[[httpx.Response], Answer]
    ) -> Answer:
        while True:
            try:
                return read(await self._sent(exchange))
            except CaptionError as error:
                await asyncio.sleep(exchange.delay_s(error))

    async def _sent(self, exchange: Exchange) -> httpx.Response:
        try:
            return await self._http.post(**exchange.request())
        except httpx.HTTPError as error:
            raise exchange.error(error) from error

    async def caption_many(
        self, images: Iterable[Of], *, concurrency: int = 8, **options: Any
    ) -> AsyncIterator[Result[Of]]:
        """Caption many images, several at once, and give their results in order.

        Args:
            images: Taken as they are needed; it may be long, or without an end.
            concurrency: How many are under way at once.
            options: As for `caption`.
        """
        waiting: deque[asyncio.Task[Result[Of]]] = deque()
        try:
            for image in images:
                waiting.append(asyncio.create_task(self._result(image, options)))
                if len(waiting) >= concurrency:
                    yield await waiting.popleft()
            while waiting:
                yield await waiting.popleft()
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    def caption_folder(
        self, folder: str | PathLike[str], *, concurrency: int = 8, **options: Any
    ) -> AsyncIterator[Result[Path]]:
        """Caption the images in a folder and in the folders inside it."""
        return self.caption_many(images_in(folder), concurrency=concurrency, **options)

    async def _result(self, image: Of, options: dict[str, Any]) -> Result[Of]:
        try:
            return Result(image, caption=await self.caption(image, **options))
        except (CaptionError, OSError) as error:
            return Result(image, error=error)
