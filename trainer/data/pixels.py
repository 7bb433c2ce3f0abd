"""Image files -> hashes of what they show, so that one picture under two names is found."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from app.captioner.errors import ImageError
from app.captioner.image.decode import decode
from trainer.data.clips import frame_files
from trainer.errors import DataError

MAX_PIXELS = 100_000_000

# More than a JPEG can have on a side: it is then decoded whole, never scaled down.
_WHOLE_PX = 65_536


@dataclass(frozen=True)
class PixelHashes:
    """What the files of a folder show.

    Attributes:
        sha256: file name -> hash of the decoded pixels, equal for a copy in any lossless format.
        broken: file name -> why it cannot be decoded.
    """

    sha256: dict[str, str]
    broken: dict[str, str]


def hash_images(files: Iterable[tuple[str, Path]]) -> PixelHashes:
    """Decode every file once.

    Args:
        files: name and path of each.
    """
    hashes = PixelHashes({}, {})
    for name, path in tqdm(list(files), "pictures", unit="image", leave=False):
        try:
            hashes.sha256[name] = pixels_sha256(path)
        except (ImageError, OSError, DataError) as error:
            hashes.broken[name] = str(error)
    return hashes


def pixels_sha256(path: Path) -> str:
    """Hash the decoded pixels and the shape of one image, or of all frames of a clip.

    Raises:
        ImageError: the file is no image that the service could read.
        DataError: a clip holds no frame.
    """
    if path.is_dir():
        frames = "".join(map(pixels_sha256, frame_files(path)))
        return hashlib.sha256(frames.encode()).hexdigest()
    pixels_HWC = decode(path.read_bytes(), at_least_px=_WHOLE_PX, max_pixels=MAX_PIXELS)
    digest = hashlib.sha256(str(pixels_HWC.shape).encode())
    digest.update(pixels_HWC.tobytes())
    return digest.hexdigest()
