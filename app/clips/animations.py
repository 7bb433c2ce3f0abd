"""Images that move, GIF, APNG, WebP and AVIF, -> frames, with Pillow."""

import math
from collections.abc import Iterator
from typing import Final

import numpy as np
from PIL import Image

from app.captioner.errors import ImageTooLarge
from app.captioner.image import decode, formats
from app.captioner.image.bare import Bare
from app.captioner.image.fit import fit
from app.clips.kinds import Animation
from app.clips.sampling import End, Frame, Sampler, Sampling, damaged_clip

_SHORTEST_S: Final = 0.01
_USUAL_S: Final = 0.1
"""Browsers show a frame that says 10 ms or less for so long."""


def frames(data: bytes, kind: Animation, how: Sampling) -> Iterator[Frame | End] | None:
    """Read an image that moves; None of one that does not.

    Raises:
        ImageError: it is at fault; also while frames are read.
    """
    if formats.pixels(data) > how.max_pixels:
        raise ImageTooLarge("the clip has more pixels than this service accepts", how.max_pixels)
    try:
        image = decode.opened(Bare(data, b""), kind)
        moves = bool(getattr(image, "is_animated", False))
    except (MemoryError, Image.DecompressionBombError):
        raise
    except Exception:  # noqa: BLE001 - decoders raise anything; nothing of it may leave
        raise damaged_clip() from None
    return _frames(image, how) if moves else None


def _frames(image: Image.Image, how: Sampling) -> Iterator[Frame | End]:
    sampler, time_s, number = Sampler(how, None), 0.0, 0
    with image:
        while _goes_to(image, number):
            if sampler.wants(time_s):
                if sampler.is_full:
                    yield End(time_s, complete=False, whole=True)
                    return
                if not _is_loaded(image):
                    break
                yield Frame(time_s, _square(image, how))
                sampler.took(time_s)
            time_s += _duration_s(image)
            number += 1
        else:
            yield End(time_s, complete=True, whole=True)
            return
        if not sampler.taken:
            raise damaged_clip()
        yield End(time_s, complete=True, whole=False)


def _goes_to(image: Image.Image, number: int) -> bool:
    """Go to a frame; say whether there is one that can be reached."""
    try:
        image.seek(number)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - as above; EOFError is how Pillow says that it was the last
        return False
    return True


def _is_loaded(image: Image.Image) -> bool:
    try:
        image.load()
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - as above
        return False
    return True


def _duration_s(image: Image.Image) -> float:
    try:
        lasts_s = float(image.info.get("duration", 0)) / 1000
    except (TypeError, ValueError):
        return _USUAL_S
    return lasts_s if math.isfinite(lasts_s) and lasts_s > _SHORTEST_S else _USUAL_S


def _square(image: Image.Image, how: Sampling) -> decode.Pixels:
    pixels_HWC = np.asarray(decode.opaque(image))
    return fit(pixels_HWC, size_px=how.size_px, how=how.fit, resampling=how.resampling)
