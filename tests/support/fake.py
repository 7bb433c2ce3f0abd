"""A captioner without a network, and a way to serve it: what the tests of the service share."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
from fastapi import FastAPI

from app.captioner.architecture import Architecture
from app.captioner.captions import Candidates, Caption, Word
from app.captioner.engines.engine import EngineResult, Stage
from app.captioner.engines.numpy_search import Encoded, Following, search
from app.captioner.errors import ImageError, ImageTooLarge, UndecodableImage, UnsupportedImage
from app.captioner.image.decode import Decode, EncodedImage, Pixels, decode
from app.captioner.manifest import ImageGeometry, Manifest
from app.captioner.pipeline import BatchResult, Captioner
from app.captioner.search import SearchOptions, StillWaiting, always_waiting
from app.captioner.tags import Tag
from app.captioner.vocabulary import BOS, EOS, PAD, UNK, Vocabulary
from app.main import create_app
from app.serving import captioner as served
from app.settings import Settings

IMAGE_ERRORS: dict[bytes, ImageError] = {
    b"gif": UnsupportedImage("expected a JPEG, PNG or WebP image"),
    b"bomb": ImageTooLarge("more pixels than allowed"),
    b"broken": UndecodableImage("damaged"),
}
SHA256 = "ab" * 32  # of weights that do not exist
WORDS = ("a", "dog", "runs", "on", "grass", "girl", "plays", "in", "water", "red")


def tiny_manifest(**search_options: Any) -> Manifest:
    """Describe a network that does not exist."""
    architecture = Architecture(
        encoder="mobilenet_v2",
        decoder="attention",
        features="grid",
        embedding_width=16,
        hidden_width=16,
        words=len(Vocabulary(WORDS)),
    )
    return Manifest(
        name="tiny",
        version="1",
        architecture=architecture,
        image=ImageGeometry(size_px=64, fit="squeeze"),
        search=SearchOptions(**search_options),
        files={"weights.safetensors": SHA256},
    )


def pixels(data: bytes) -> Pixels:
    """Give an image of which `FakeCaptioner` says what the bytes say."""
    return np.frombuffer(data, np.uint8)


class FakeEngine:
    """Where the network would run."""

    def __init__(self) -> None:
        self.max_concurrent_batches = 1
        self.batches_cost_alike = False


DOG, CAT = b"a dog runs", b"a cat"


def photo_folder(place: Path) -> Path:
    """Make a folder with what the fake takes for photos, in it and in a folder inside it."""
    (place / "inner").mkdir(parents=True)
    (place / "b.JPG").write_bytes(DOG)
    (place / "inner/a.png").write_bytes(CAT)
    (place / "notes.txt").write_bytes(b"no photo")
    return place


class FakeCaptioner:
    """Says of each upload what its bytes say; ``gate`` holds the inference thread."""

    def __init__(self) -> None:
        self.manifest = tiny_manifest(beam_width=3)
        self.engine = FakeEngine()
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.batches: list[list[bytes]] = []
        self.warmed: list[int] = []
        self.decodes_in_batch = False  # as a captioner on a CPU does with most JPEGs
        self.golden_error: Exception | None = None
        self.device_errors: list[Exception] = []  # raised by the next batches, one each

    def read(self, data: bytes, *, max_pixels: int, decode: Decode = decode) -> Pixels:  # noqa: ARG002
        if len(data) > max_pixels:
            raise IMAGE_ERRORS[b"bomb"]
        if data in IMAGE_ERRORS:
            raise IMAGE_ERRORS[data]
        return pixels(data)

    def encoded(self, data: bytes, *, max_pixels: int) -> EncodedImage | None:
        return EncodedImage(data, max_pixels) if self.decodes_in_batch else None

    def caption(
        self,
        images: Sequence[Pixels | EncodedImage],
        still_waiting: StillWaiting = always_waiting,
    ) -> BatchResult:
        read, refused = self._read_all(images)
        self.batches.append(read)
        self.entered.set()
        self.gate.wait(10)
        if b"poison" in read:
            raise RuntimeError("secret at 0x7f00deadbeef")
        for error in self.device_errors[:1]:
            del self.device_errors[0]
            raise error
        captions = tuple(
            _candidates(data) if still_waiting(n) and n not in refused else Candidates()
            for n, data in enumerate(read)
        )
        names = ("decode",) * self.decodes_in_batch + ("encode", "search")
        now_s = time.monotonic()
        stages = (Stage(name, now_s + n, now_s + n + 1) for n, name in enumerate(names))
        return BatchResult(captions, refused, tuple(stages))

    def _read_all(
        self, images: Sequence[Pixels | EncodedImage]
    ) -> tuple[list[bytes], dict[int, ImageError]]:
        read, refused = [b""] * len(images), {}
        for n, image in enumerate(images):
            try:
                if isinstance(image, EncodedImage):
                    image = self.read(image.data, max_pixels=image.max_pixels)  # noqa: PLW2901
                read[n] = image.tobytes()
            except ImageError as error:
                refused[n] = error
        return read, refused

    def shot(self, frames: Sequence[Pixels]) -> Pixels:
        return frames[0] if len(frames) == 1 else np.stack(frames)

    def caption_frames(self, frames: Sequence[Pixels]) -> Candidates:
        return self.caption([self.shot(frames)]).captions[0]

    def summaries(self, images: Sequence[Pixels]) -> npt.NDArray[np.float32]:
        return np.array([image.reshape(-1, 3).mean(0) for image in images], np.float32)

    def warm_up(self, batch_sizes: Iterable[int]) -> None:
        self.warmed = list(batch_sizes)

    def check_golden(self, *, decode: Decode = decode) -> None:  # noqa: ARG002
        if self.golden_error:
            raise self.golden_error


def _candidates(data: bytes) -> Candidates:
    text = data.decode(errors="replace")
    return Candidates((_caption(text, k) for k in range(3)), (Tag("dog", 0.75),))


def _caption(text: str, k: int) -> Caption:
    attention = np.full((2, 2), 0.2, dtype=np.float32)
    words = tuple(Word(word, -0.5, attention, 0.2) for word in text.split()[:20])
    return Caption(text if k == 0 else f"{text} {k}", -1.0 - k, -0.5 - k, words, (8 - k) / 10)


class SteppingEngine:
    """Searches for captions in a table of word scores that each image shifts.

    ``images`` tells how many images each step had. Each batch announces its first step through
    ``entered`` and waits there for ``gate``.
    """

    max_concurrent_batches = 1
    batches_cost_alike = False
    words = len(Vocabulary(WORDS))

    def __init__(self, options: SearchOptions) -> None:
        self._options = options
        self.images: list[int] = []
        self.entered, self.gate = threading.Semaphore(0), threading.Semaphore(0)

    def run(self, images: Sequence[Pixels], still_waiting: StillWaiting) -> EngineResult:
        began_s = time.monotonic()
        self._is_first_step = True
        shift_B1 = np.array([[image.mean()] for image in images], np.float32)
        state_B1H = np.zeros((len(images), 1, 1), np.float32)
        beams = search(
            self,
            Encoded(state_B1H, state_B1H, [shift_B1]),
            self._options,
            bos=BOS,
            eos=EOS,
            banned=(PAD, UNK),
            still_waiting=still_waiting,
        )
        stages = (Stage("encode", began_s, began_s), Stage("search", began_s, time.monotonic()))
        return EngineResult(list(range(len(images))), beams, stages)

    def __call__(
        self,
        words_LG: npt.NDArray[np.int64],
        hidden_LGH: npt.NDArray[np.float32],
        cell_LGH: npt.NDArray[np.float32],
        image: Sequence[npt.NDArray[np.float32]],
        barred: npt.NDArray[np.float32],
    ) -> Following:
        """Do one step of the search; see `numpy_search.Step`."""
        self.images.append(len(words_LG))
        if self._is_first_step:
            self._is_first_step = False
            self.entered.release()
            self.gate.acquire(timeout=10)
        (shift_L1,) = image
        scores_LGV = np.sin(np.arange(self.words) * (words_LG + shift_L1)[..., None]) + barred
        log_probs_LGV = (scores_LGV - np.log(np.exp(scores_LGV).sum(-1, keepdims=True))).astype("f")
        best_LGN = np.argsort(-log_probs_LGV, -1)[..., :3]
        return Following(
            np.take_along_axis(log_probs_LGV, best_LGN, -1),
            best_LGN,
            log_probs_LGV[..., [EOS]],
            hidden_LGH,
            cell_LGH,
            np.full((*words_LG.shape, 5), 0.2, np.float32),
        )

    def summaries(self, images: Sequence[Pixels]) -> npt.NDArray[np.float32]:
        return np.array([[image.mean()] for image in images], np.float32)

    def warm_up(self, images: Sequence[Pixels]) -> None:
        """Nothing is slower at first."""


class SteppingCaptioner(Captioner):
    """The real captioner with a `SteppingEngine`, which says eleven words."""

    engine: SteppingEngine

    def __init__(self) -> None:
        manifest = tiny_manifest(min_words=11, max_words=11)
        super().__init__(SteppingEngine(manifest.search), Vocabulary(WORDS), manifest)

    def check_golden(self, *, decode: Decode = decode) -> None:
        """There is none."""


def pass_time(seconds: float) -> None:
    """Let the clock of the running loop jump."""
    loop = asyncio.get_running_loop()
    now_s = loop.time
    loop.time = lambda: now_s() + seconds  # type: ignore[method-assign] # a test's privilege


class Client(httpx.AsyncClient):
    """A client that knows the application it asks."""

    app: FastAPI


@asynccontextmanager
async def serving(
    *captioners: served.Captioner, wait: bool = True, **settings: Any
) -> AsyncIterator[Client]:
    """Give a client of an app that serves the captioners; ``client.app`` is the app."""
    app = create_app(Settings(**settings), captioners=captioners or [FakeCaptioner()])
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        Client(transport=transport, base_url="http://test") as client,
    ):
        client.app = app
        if wait:
            await asyncio.wait({app.state.app_state.service._starting})
        yield client


def deadline_s() -> float:
    return asyncio.get_running_loop().time() + 10


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - images are decoded in threads
            await asyncio.sleep(0.001)
