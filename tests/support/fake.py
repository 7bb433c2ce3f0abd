"""A captioner without a network, and a way to serve it: what the tests of the service share."""

import asyncio
import threading
import time
from contextlib import asynccontextmanager
from types import SimpleNamespace

import httpx
import numpy as np

from app.captioner.beam import SearchOptions
from app.captioner.captions import Caption, Word
from app.captioner.errors import ImageError, ImageTooLarge, UndecodableImage, UnsupportedImage
from app.captioner.image import Unread
from app.captioner.pipeline import Captioner
from app.main import create_app
from app.settings import Settings
from support.tiny import tiny_unpublished

IMAGE_ERRORS = {
    b"gif": UnsupportedImage("expected a JPEG, PNG or WebP image"),
    b"bomb": ImageTooLarge("more pixels than allowed"),
    b"broken": UndecodableImage("damaged"),
}


class Pixels(bytes):
    """What a tensor is to the queue: so many bytes."""

    @property
    def nbytes(self):
        return len(self)


class FakeCaptioner:
    """Says of each upload what its bytes say; ``gate`` holds the inference thread."""

    def __init__(self):
        self.manifest = SimpleNamespace(
            name="tiny",
            version="1",
            search=SimpleNamespace(beam_width=3),
            public=lambda: {"name": "tiny", "version": "1", "sha256": "abc"},
        )
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.batches = []
        self.lanes = 1
        self.batches_cost_alike = False
        self.warmed = []
        self.alone = []  # what each batch was told
        self.reads_batches = False  # as a captioner on a CPU does
        self.golden_error = None
        self.closed = False
        self.whole = True
        self.device_errors = []  # raised by the next batches, one each

    def read(self, data, *, max_pixels):
        if len(data) > max_pixels:
            raise IMAGE_ERRORS[b"bomb"]
        if data in IMAGE_ERRORS:
            raise IMAGE_ERRORS[data]
        return Pixels(data)

    def unread(self, data, *, max_pixels):
        return Unread(data, max_pixels) if self.reads_batches else None

    def caption(
        self,
        images,
        *,
        on_stage=lambda *_: None,
        on_refused=lambda *_: None,
        wanted=lambda _: True,
        alone=True,
    ):
        images = list(images)
        for n, each in enumerate(images):
            if isinstance(each, Unread):
                images[n] = self._read_in_batch(n, each, on_refused)
                on_stage("decode", time.monotonic(), time.monotonic())
        self.alone.append(alone)
        self.batches.append(list(images))
        self.entered.set()
        self.gate.wait(10)
        if b"poison" in images:
            raise RuntimeError("secret at 0x7f00deadbeef")
        for error in self.device_errors[:1]:
            del self.device_errors[0]
            raise error
        for number, stage in enumerate(("encode", "search")):
            on_stage(stage, time.monotonic() + number, time.monotonic() + number + 1)
        return [
            tuple(_caption(image.decode(errors="replace"), k) for k in range(3 if wanted(n) else 0))
            for n, image in enumerate(images)
        ]

    def _read_in_batch(self, n, upload, on_refused):
        try:
            return self.read(upload.data, max_pixels=upload.max_pixels)
        except ImageError as error:
            on_refused(n, error)
            return Pixels()

    def warm_up(self, batch_sizes):
        self.warmed = list(batch_sizes)

    def check_golden(self):
        if self.golden_error:
            raise self.golden_error

    def close(self):
        self.closed = True


def _caption(text, k):
    attention = np.full((2, 2), 0.2, dtype=np.float32)
    words = tuple(Word(word, -0.5, attention, 0.2) for word in text.split()[:20])
    return Caption(text if k == 0 else f"{text} {k}", -1.0 - k, -0.5 - k, words)


class SteppingCaptioner(Captioner):
    """A tiny network that says eleven words: ``rows`` tells how many images each step had.

    Each batch announces its first step through ``entered`` and waits there for ``gate``.
    """

    def __init__(self):
        loaded = tiny_unpublished()
        search = SearchOptions(min_words=11, max_words=11)
        manifest = loaded.manifest.model_copy(update={"search": search})
        super().__init__(loaded._replace(manifest=manifest))
        self.rows = []
        self.entered, self.gate = threading.Semaphore(0), threading.Semaphore(0)
        self._step, self.network.decoder.step = self.network.decoder.step, self.step

    def caption(self, images, **options):
        self.begins = True
        return super().caption(images, **options)

    def step(self, words_BK, state):
        self.rows.append(len(words_BK))
        if self.begins:
            self.begins = False
            self.entered.release()
            self.gate.acquire(timeout=10)
        return self._step(words_BK, state)

    def warm_up(self, batch_sizes):
        pass

    def check_golden(self):
        pass


def pass_time(seconds):
    """Let the clock of the running loop jump."""
    loop = asyncio.get_running_loop()
    now_s = loop.time
    loop.time = lambda: now_s() + seconds


@asynccontextmanager
async def serving(captioner=None, *, wait=True, **settings):
    """Give a client of an app that serves the captioner; ``client.app`` is the app."""
    app = create_app(Settings(**settings), captioner=captioner or FakeCaptioner())
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        client.app = app
        if wait:
            await asyncio.wait({app.state.app_state.service._starting})
        yield client


def deadline_s():
    return asyncio.get_running_loop().time() + 10


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - images are decoded in threads
            await asyncio.sleep(0.001)
