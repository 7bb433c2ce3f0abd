"""The client for programs without an event loop."""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from os import PathLike
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx

from caption_client.errors import CaptionError
from caption_client.exchange import Exchange, Options, client_options
from caption_client.images import images_in
from caption_client.models import Caption, Image, Result

Of = TypeVar("Of", bound=Image)


class Client:
    """Asks one service. Safe to use from several threads; close it, or use it with ``with``.

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
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._http = httpx.Client(transport=transport, **client_options(url, key))
        self._deadline_s = deadline_s
        self._retries = retries

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def caption(self, image: Image, **asked: Any) -> Caption:
        """Caption one image.

        Args:
            image: A path, bytes or an open file.
            asked: As the members of `Options`: ``n_best=3``, ``neutral=True`` and so on.

        Raises:
            CaptionError: It has no caption; the subclass says why.
            OSError: Its file cannot be read.
        """
        options = Options(**asked)
        exchange = Exchange.of(image, options, self._deadline_s, self._retries)
        while True:
            try:
                return self._tried(exchange)
            except CaptionError as error:
                time.sleep(exchange.delay_s(error))

    def _tried(self, exchange: Exchange) -> Caption:
        try:
            answer = self._http.post(**exchange.request())
        except httpx.HTTPError as error:
            raise exchange.error(error) from error
        return exchange.caption(answer)

    def caption_many(
        self, images: Iterable[Of], *, concurrency: int = 8, **options: Any
    ) -> Iterator[Result[Of]]:
        """Caption many images, several at once, and give their results in order.

        Args:
            images: Taken as they are needed; it may be long, or without an end.
            concurrency: How many are under way at once.
            options: As for `caption`.
        """
        with ThreadPoolExecutor(concurrency) as pool:
            waiting: deque[Future[Result[Of]]] = deque()
            try:
                for image in images:
                    waiting.append(pool.submit(self._result, image, options))
                    if len(waiting) > concurrency:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:  # who stops early waits for what is under way, and for nothing else
                pool.shutdown(wait=False, cancel_futures=True)

    def caption_folder(
        self, folder: str | PathLike[str], *, concurrency: int = 8, **options: Any
    ) -> Iterator[Result[Path]]:
        """Caption the images in a folder and in the folders inside it."""
        return self.caption_many(images_in(folder), concurrency=concurrency, **options)

    def _result(self, image: Of, options: dict[str, Any]) -> Result[Of]:
        try:
            return Result(image, caption=self.caption(image, **options))
        except (CaptionError, OSError) as error:
            return Result(image, error=error)
