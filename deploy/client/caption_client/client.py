"""The client for programs without an event loop."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from os import PathLike
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx

from caption_client.errors import CaptionError
from caption_client.exchange import (
    CLIP_DEADLINE_S,
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
        exchange = Exchange.of(image, Options(**asked), self._deadline_s, self._retries)
        return self._answered(exchange, exchange.caption)

    def describe(self, clip: File, *, deadline_s: float = CLIP_DEADLINE_S, **asked: Any) -> Clip:
        """Describe the shots of one clip.

        Args:
            clip: A path, bytes or an open file, of a GIF, a video or an image.
            deadline_s: Seconds for it, retries included.
            asked: As the members of `ClipOptions`: ``fps=1``, ``neutral=True`` and so on.

        Raises:
            CaptionError: It has no captions; the subclass says why.
            OSError: Its file cannot be read.
        """
        exchange = Exchange.of(clip, ClipOptions(**asked), deadline_s, self._retries)
        return self._answered(exchange, exchange.clip)

    def track(
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
        exchange = Exchange.of(clip, ClipOptions(**asked), deadline_s, self._retries, accept)
        return self._answered(exchange, exchange.track)

    def shots(
        self, clip: File, *, deadline_s: float = CLIP_DEADLINE_S, **asked: Any
    ) -> Iterator[Shot]:
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

    def _shots(self, clip: File, options: ClipOptions, deadline_s: float) -> Iterator[Shot]:
        exchange = Exchange.of(clip, options, deadline_s, self._retries, LINES)
        while not exchange.has_ended:
            try:
                yield from self._streamed(exchange)
            except CaptionError as error:
                time.sleep(exchange.delay_s(error))

    def _streamed(self, exchange: Exchange) -> Iterator[Shot]:
        try:
            with self._http.stream("POST", **exchange.request()) as answer:
                if answer.status_code != 200:
                    answer.read()
                exchange.check(answer)
                for line in answer.iter_lines():
                    if shot := exchange.shot(line):
                        with exchange.paused():
                            yield shot
        except httpx.HTTPError as error:
            raise exchange.error(error) from error
        exchange.check_ended()

    def _answered(self, exchange: Exchange, read: Callable[[httpx.Response], Answer]) -> Answer:
        while True:
            try:
                return read(self._sent(exchange))
            except CaptionError as error:
                time.sleep(exchange.delay_s(error))

    def _sent(self, exchange: Exchange) -> httpx.Response:
        try:
            return self._http.post(**exchange.request())
        except httpx.HTTPError as error:
            raise exchange.error(error) from error

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
