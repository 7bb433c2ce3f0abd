"""MP4, MOV and WebM -> frames, with FFmpeg by way of PyAV (extra ``video``).

A video is hostile until proven otherwise. FFmpeg can follow what a file names, over the network or
to other files, and has hundreds of decoders that nobody looks at any more. So the demuxer is named
by us and not guessed, it may open nothing besides the bytes that it is given, and of decoders only
those are allowed that phones, browsers and screen recorders write for.

Reference: https://ffmpeg.org/ffmpeg-formats.html#Format-Options
"""

import io
import math
from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from app.captioner.errors import (
    ImageTooLarge,
    TooCostly,
    UndecodableImage,
    UnsupportedImage,
)
from app.captioner.image.fit import fit
from app.clips.kinds import Container
from app.clips.sampling import End, Frame, Sampler, Sampling, damaged_clip

if TYPE_CHECKING:
    from app.captioner.image.decode import Pixels

_CODECS: Final = frozenset(
    {"h264", "hevc", "vp8", "vp9", "libvpx", "libvpx-vp9", "av1", "libdav1d", "mpeg4", "mjpeg"}
)
_NAMES: Final = "H.264, HEVC, VP8, VP9, AV1, MPEG-4 or Motion JPEG"
_OPTIONS: Final = {
    "format_whitelist": "mov,matroska",
    "codec_whitelist": ",".join(sorted(_CODECS)),
    "protocol_whitelist": "none",  # not even files: the bytes come through a call of ours
    "enable_drefs": "0",
    "use_absolute_path": "0",
}
_OPTIONS_OF: Final[dict[Container, tuple[str, ...]]] = {
    "mov": ("enable_drefs", "use_absolute_path"),
    "matroska": (),
}
_QUARTER: Final = 90


def frames(data: bytes, container: Container, how: Sampling) -> Iterator[Frame | End]:
    """Read a video.

    Raises:
        ImageError: it is at fault; also while frames are read.
    """
    if find_spec("av") is None:
        raise UnsupportedImage(
            "video is not read here: send a GIF or the frames, or install caption-service[video]"
        )
    import av  # noqa: PLC0415 - an extra, which brings FFmpeg

    av.logging.set_level(None)
    try:
        opened = av.open(
            io.BytesIO(data),
            format=container,
            options=_options(container),
            metadata_errors="ignore",
        )
    except (av.FFmpegError, ValueError, UnicodeError):
        raise damaged_clip() from None
    with opened:
        yield from _Video(opened, how).frames()


def _options(container: Container) -> dict[str, str]:
    """Give the options that this demuxer knows."""
    others = {name for names in _OPTIONS_OF.values() for name in names}
    known = _OPTIONS.keys() - others | set(_OPTIONS_OF[container])
    return {name: _OPTIONS[name] for name in known}


class _Video:
    """The pictures of a video that is open.

    Raises:
        ImageError: there are none, or more than may be.
    """

    def __init__(self, opened: Any, how: Sampling) -> None:
        self._opened = opened
        self._how = how
        self._stream = _pictures(opened)
        context = self._stream.codec_context
        _check_size(context.width, context.height, how)
        self._frame_s = _frame_s(self._stream)
        if context.width * context.height / self._frame_s > how.max_pixels_per_s:
            raise TooCostly(
                f"the clip has more than {how.max_pixels_per_s} pixels a second: make it smaller"
            )
        self._sampler = Sampler(how, _duration_s(opened, self._stream))
        start = self._stream.start_time
        self._start_s = float(start * self._stream.time_base) if start else 0.0
        context.thread_type = "NONE"  # an upload has one core
        context.thread_count = 1
        context.options = {"max_pixels": str(how.max_pixels)}
        self._whole = True
        self._last_s = -self._frame_s
        self._ends_s = 0.0

    def frames(self) -> Iterator[Frame | End]:
        for each in self._decoded():
            self._last_s = max(self._last_s, self._time_s(each))
            self._ends_s = self._last_s + self._lasts_s(each)
            if not self._sampler.wants(self._last_s):
                continue
            if self._sampler.is_full:
                yield End(self._last_s, complete=False, whole=self._whole)
                return
            _check_size(each.width, each.height, self._how)
            yield Frame(max(0.0, self._last_s), self._square(each))
            self._sampler.took(self._last_s)
        if not self._sampler.taken:
            raise damaged_clip()
        yield End(self._ends_s, complete=True, whole=self._whole)

    def _decoded(self) -> Iterator[Any]:
        """Give the frames; what is damaged is left out, as players do."""
        import av  # noqa: PLC0415

        packets = self._opened.demux(self._stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.FFmpegError:
                self._whole = False
                return
            try:
                decoded = packet.decode()
            except av.FFmpegError as error:
                if isinstance(error, MemoryError):
                    raise
                self._whole = self._whole and isinstance(error, EOFError)
                continue
            yield from decoded

    def _time_s(self, frame: Any) -> float:
        """Give when it is shown; one that does not say comes right after the last."""
        time_s = frame.time
        if time_s is None or not math.isfinite(time_s):
            return self._last_s + self._frame_s
        return float(time_s) - self._start_s

    def _lasts_s(self, frame: Any) -> float:
        """Give how long it is shown; where it does not say, as long as frames are in the mean."""
        if frame.duration and frame.time_base:
            return max(0.0, float(frame.duration * frame.time_base))
        return self._frame_s

    def _square(self, frame: Any) -> "Pixels":
        pixels_HWC: Pixels = frame.to_ndarray(format="rgb24")
        how = self._how
        square_SSC = fit(pixels_HWC, size_px=how.size_px, how=how.fit, resampling=how.resampling)
        turns = round(frame.rotation / _QUARTER) % 4
        return np.ascontiguousarray(np.rot90(square_SSC, turns)) if turns else square_SSC


def _pictures(opened: Any) -> Any:
    """Give the track of pictures; the cover of an album is none.

    Raises:
        UndecodableImage: there is none.
        UnsupportedImage: it is in a code that is not read.
    """
    import av  # noqa: PLC0415

    cover = av.stream.Disposition.attached_pic
    tracks = [each for each in opened.streams.video if not each.disposition & cover]
    if not tracks and (opened.streams.audio or opened.streams.video):
        raise UndecodableImage("the file has sound and no pictures: send a clip with a video track")
    if not tracks:
        raise UndecodableImage("the file has no pictures: send a clip with a video track")
    stream = tracks[0]
    if stream.codec_context is None or stream.codec_context.codec.name not in _CODECS:
        raise UnsupportedImage(f"the video is in a code that is not read: save it as {_NAMES}")
    return stream


def _frame_s(stream: Any) -> float:
    """Give how long a frame is shown in the mean, as the container says, or a usual number."""
    rate = stream.average_rate or stream.guessed_rate
    return 1 / float(rate) if rate and float(rate) > 0 else 1 / 25


def _duration_s(opened: Any, stream: Any) -> float | None:
    """Give how long the pictures go on, as the container says, else the file; None where neither.

    A file may say anything; a track of no length says nothing.
    """
    if stream.duration and stream.time_base:
        return max(0.0, float(stream.duration * stream.time_base))
    return max(0.0, opened.duration / 1e6) if opened.duration else None


def _check_size(width: int, height: int, how: Sampling) -> None:
    if width * height > how.max_pixels:
        raise ImageTooLarge("the clip has more pixels than this service accepts", how.max_pixels)
