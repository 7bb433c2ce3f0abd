"""The bytes of a clip -> the frames that are looked at, one by one."""

from collections.abc import Iterator

from PIL import Image

from app.captioner.errors import ImageError, ImageTooLarge, TooCostly
from app.clips import animations, kinds, videos
from app.clips.sampling import End, Frame, Sampling, damaged_clip


class Still(Exception):
    """The file is an image that does not move."""


def frames(data: bytes, how: Sampling) -> Iterator[Frame | End]:
    """Read a clip: its frames in order, and its end last. No more than one is held at a time.

    Raises:
        Still: it is an image that does not move.
        ImageError: it is at fault; also while frames are read.
    """
    try:
        yield from _frames(data, how)
    except (ImageError, Still):
        raise
    except MemoryError:
        raise TooCostly("decoding the clip takes more memory than it may") from None
    except Image.DecompressionBombError:
        message = "the clip has more pixels than this service accepts"
        raise ImageTooLarge(message, how.max_pixels) from None
    except Exception:  # noqa: BLE001 - decoders raise anything; nothing of it may leave
        raise damaged_clip() from None


def _frames(data: bytes, how: Sampling) -> Iterator[Frame | End]:
    kinds.check(data)
    container = kinds.container_of(data)
    if container is not None:
        yield from videos.frames(data, container, how)
        return
    kind = kinds.animation_of(data)
    found = None if kind is None else animations.frames(data, kind, how)
    if found is None:
        raise Still
    yield from found
