"""The client for programs with asyncio's event loop."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from os import PathLike
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx

from caption_client.errors import CaptionError
from caption_client.exchange import Exchange, Options, client_options
from caption_client.images import images_in
from caption_client.models import Caption, Image, Result

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
        options = Options(**asked)
        exchange = await asyncio.to_thread(
            Exchange.of, image, options, self._deadline_s, self._retries
        )
        while True:
            try:
                return await self._tried(exchange)
            except CaptionError as error:
                await asyncio.sleep(exchange.delay_s(error))

    async def _tried(self, exchange: Exchange) -> Caption:
        try:
            answer = await self._http.post(**exchange.request())
        except httpx.HTTPError as error:
            raise exchange.error(error) from error
        return exchange.caption(answer)

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
