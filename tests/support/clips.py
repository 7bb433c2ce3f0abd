"""Small clips, made here."""

import io
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]

RED, GREEN, BLUE, WHITE = (220, 30, 30), (30, 200, 30), (30, 30, 220), (250, 250, 250)


def plain(colour: Sequence[int], width: int = 64, height: int = 48) -> Pixels:
    """Give a picture of one colour."""
    return np.full((height, width, 3), colour, np.uint8)


def halves(left: Sequence[int], right: Sequence[int], width: int = 64, height: int = 48) -> Pixels:
    """Give a picture whose halves are told apart, as which way is up."""
    picture = plain(left, width, height)
    picture[:, width // 2 :] = right
    return picture


def animation(pictures: Iterable[Pixels], kind: str = "GIF", duration_ms: Any = 500) -> bytes:
    """Write an image that moves; each picture is another one, or Pillow would join them."""
    first, *others = (Image.fromarray(each) for each in pictures)
    options = {"lossless": True} if kind == "WEBP" else {}
    file = io.BytesIO()
    first.save(
        file, kind, save_all=True, append_images=others, duration=duration_ms, loop=0, **options
    )
    return file.getvalue()


def video(
    pictures: Iterable[Pixels],
    *,
    fps: int = 10,
    kind: str = "mp4",
    codec: str = "libx264",
    times: Sequence[int] | None = None,
    sound: bool = False,
    **options: str,
) -> bytes:
    """Write a video.

    Args:
        pictures: of even sides.
        fps: of them.
        kind: the container, as FFmpeg names it.
        codec: the encoder.
        times: when each is shown, in units of 1 / fps, where the rate is variable.
        sound: whether there is a second track, of silence.
        options: of the encoder.
    """
    file = io.BytesIO()
    with av.open(file, "w", format=kind) as made:
        track = _track(made, pictures := list(pictures), codec, fps, options)
        audio = (
            made.add_stream(_SOUND_OF.get(kind, "aac"), rate=48000, layout="mono")
            if sound
            else None
        )
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = number if times is None else times[number]
            frame.time_base = Fraction(1, fps)
            made.mux(track.encode(frame))
        made.mux(track.encode(None))
        if audio is not None:
            _add_silence(made, audio, len(pictures) / fps)
    return file.getvalue()


_QUIET = {"x265-params": "log-level=none"}
_SOUND_OF = {"webm": "libopus", "matroska": "libopus"}


def _track(
    made: Any, pictures: Sequence[Pixels], codec: str, fps: int, options: dict[str, str]
) -> Any:
    track = made.add_stream(codec, rate=fps, options={"threads": "1", **_QUIET, **options})
    track.height, track.width = pictures[0].shape[:2]
    track.pix_fmt = "yuv420p"
    track.codec_context.time_base = Fraction(1, fps)
    return track


def _add_silence(made: Any, audio: Any, seconds: float) -> None:
    samples = np.zeros((1, 960), np.float32)
    for number in range(max(1, round(seconds * 50))):
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 48000, 960 * number
        made.mux(audio.encode(frame))
    made.mux(audio.encode(None))


def sound_alone(kind: str = "mp4") -> bytes:
    """Write a file with sound and no pictures."""
    file = io.BytesIO()
    with av.open(file, "w", format=kind) as made:
        _add_silence(made, made.add_stream("aac", rate=48000, layout="mono"), 1.0)
    return file.getvalue()


_UPRIGHT = (0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
_TURNED = {  # clockwise, by which a player turns the pictures
    90: (0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000),
    180: (-0x10000, 0, 0, 0, -0x10000, 0, 0, 0, 0x40000000),
    270: (0, -0x10000, 0, 0x10000, 0, 0, 0, 0, 0x40000000),
}


def turned(clip: bytes, degrees: int) -> bytes:
    """Say in an MP4 that players turn it, as phones do; its pictures stay as they are."""
    before, after = (
        b"".join(number.to_bytes(4, "big", signed=True) for number in matrix)
        for matrix in (_UPRIGHT, _TURNED[degrees])
    )
    at = clip.index(before, clip.index(b"tkhd"))
    return clip[:at] + after + clip[at + len(after) :]
