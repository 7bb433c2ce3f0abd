"""Montages: clips made of photos, of which it is known where one shot becomes another."""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]
FPS = 12
WIDTH, HEIGHT = 320, 240
SPARE = 1.4
"""A photo is so many times as large as the frame: a camera can move over it."""
_STILL, _CUT = "still", "cut"
MOTIONS = (_STILL, "pan", "zoom")
_SHAKE_PX = 1.0


@dataclass(frozen=True)
class Montage:
    """How photos follow each other.

    Attributes:
        join: ``cut`` or ``fade``.
        motions: what the camera may do within a shot.
        shot_s: the shortest and the longest shot.
        fade_s: the shortest and the longest fade.
    """

    join: str
    motions: Sequence[str]
    shot_s: tuple[float, float] = (2.5, 6.0)
    fade_s: tuple[float, float] = (0.5, 1.5)


@dataclass(frozen=True)
class Made:
    """A montage that was made.

    Attributes:
        clip: an MP4.
        joins: when each join begins and ends; of a cut, the same moment twice.
        duration_s: of the clip.
    """

    clip: bytes
    joins: list[tuple[float, float]]
    duration_s: float


def make(photos: Sequence[bytes], how: Montage, seed: int) -> Made:
    """Make a montage of these photos, each a shot, in their order."""
    random = np.random.default_rng(seed)
    shots = [_Shot(photo, how, random) for photo in photos]
    joins: list[tuple[float, float]] = []
    at = 0
    for shot in shots[:-1]:
        at += shot.frames
        joins.append(((at - shot.fade_frames) / FPS, at / FPS))
        at -= shot.fade_frames
    frames = list(_frames(shots))
    return Made(encode(frames), joins, len(frames) / FPS)


class _Shot:
    def __init__(self, photo: bytes, how: Montage, random: np.random.Generator) -> None:
        self._photo = _filling(photo)
        self._motion = how.motions[random.integers(len(how.motions))]
        self._random = random
        self.frames = round(random.uniform(*how.shot_s) * FPS)
        self.fade_frames = round(random.uniform(*how.fade_s) * FPS) if how.join != _CUT else 0
        self._ends = random.uniform(0, 1, (2, 2))
        self._sizes = random.permutation([1.0, 1 / SPARE])

    def frame(self, number: int) -> Pixels:
        """Give a frame: what the camera sees, from where it is by then."""
        share = number / max(1, self.frames - 1)
        size = 1.0
        if self._motion == "zoom":
            size = self._sizes[0] + share * (self._sizes[1] - self._sizes[0])
        elif self._motion == "pan":
            size = 1 / SPARE
        width, height = self._photo.width * size, self._photo.height * size
        place = np.array([0.5, 0.5])
        if self._motion == "pan":
            place = self._ends[0] + share * (self._ends[1] - self._ends[0])
        shake = self._random.normal(0, _SHAKE_PX, 2)
        left = place[0] * (self._photo.width - width) + shake[0]
        top = place[1] * (self._photo.height - height) + shake[1]
        box = (
            max(0.0, min(left, self._photo.width - width)),
            max(0.0, min(top, self._photo.height - height)),
        )
        seen = (*box, box[0] + width, box[1] + height)
        return np.asarray(self._photo.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR, seen))


def _filling(photo: bytes) -> Image.Image:
    """Give a photo as large as the camera may wander over, its middle."""
    image = Image.open(io.BytesIO(photo)).convert("RGB")
    size = (round(WIDTH * SPARE), round(HEIGHT * SPARE))
    scale = max(size[0] / image.width, size[1] / image.height)
    large = image.resize((round(image.width * scale) + 1, round(image.height * scale) + 1))
    left, top = (large.width - size[0]) // 2, (large.height - size[1]) // 2
    return large.crop((left, top, left + size[0], top + size[1]))


def _frames(shots: Sequence[_Shot]) -> Iterator[Pixels]:
    """Give all frames; during a fade both shots are seen, and the camera moves on in both."""
    over = 0
    for shot, following in zip(shots, [*shots[1:], None], strict=True):
        fade = shot.fade_frames if following is not None else 0
        for number in range(over, shot.frames - fade):
            yield shot.frame(number)
        if following is not None:
            for number in range(fade):
                share = (number + 1) / (fade + 1)
                one = shot.frame(shot.frames - fade + number).astype(np.float32)
                other = following.frame(number).astype(np.float32)
                yield (one * (1 - share) + other * share).astype(np.uint8)
        over = fade


def encode(
    frames: Sequence[Pixels] | Iterator[Pixels], *, codec: str = "libx264", fps: int = FPS
) -> bytes:
    """Write an MP4 of frames that have even sides."""
    import av  # noqa: PLC0415

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as made:
        track: Any = made.add_stream(codec, rate=fps, options={"preset": "veryfast"})
        track.width, track.height, track.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        track.codec_context.thread_count = 1
        for number, pixels in enumerate(frames):
            if not number:
                track.height, track.width = pixels.shape[:2]
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            made.mux(track.encode(frame))
        made.mux(track.encode(None))
    return file.getvalue()


KINDS: dict[str, Montage] = {
    "cuts": Montage("cut", [_STILL]),
    "cuts, pans": Montage("cut", ["pan"]),
    "cuts, zooms": Montage("cut", ["zoom"]),
    "fades": Montage("fade", [_STILL]),
    "fades, pans and zooms": Montage("fade", ["pan", "zoom"]),
}


def repeated(clip: bytes, times: int) -> bytes:
    """Join a clip with itself, packet by packet: nothing is encoded again."""
    import av  # noqa: PLC0415

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as made, av.open(io.BytesIO(clip)) as first:
        track = made.add_stream_from_template(first.streams.video[0])
        lasts = first.streams.video[0].duration
        for number in range(times):
            with av.open(io.BytesIO(clip)) as again:
                for packet in again.demux(video=0):
                    if packet.dts is None:
                        continue
                    packet.pts += number * lasts
                    packet.dts += number * lasts
                    packet.stream = track
                    made.mux(packet)
    return file.getvalue()
