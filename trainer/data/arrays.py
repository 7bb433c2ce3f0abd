"""Splits -> fitted images and features: computed once into a cache, or read from shards.

N images of a split, S side of the square, R regions, D feature width, F frames of a clip. Every
array ``<key>.npy`` has a neighbour ``<key>.json`` that says what it holds; a key is a hash of all
that went in.
"""

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from app.captioner.architecture import IMAGENET_CLASSES
from app.captioner.errors import ImageError
from app.captioner.image.decode import decode
from app.captioner.image.fit import fit
from app.captioner.image.frames import evenly
from app.captioner.manifest import ImageGeometry
from app.captioner.model import network
from app.captioner.model.network import Encoder
from trainer.data.clips import frame_files
from trainer.data.flickr8k import Example, Split
from trainer.data.pixels import MAX_PIXELS
from trainer.data.shards import Member
from trainer.errors import DataError

ENCODE_BATCH = 32


def fitted_images(
    split: Split, geometry: ImageGeometry, cache: Path, frames_per_clip: int | None = None
) -> npt.NDArray[np.uint8]:
    """Give the split's images as the network's squares, decoded once.

    Args:
        split: of images, or of clips.
        geometry: how an image becomes a square.
        cache: where the squares are kept.
        frames_per_clip: F, of clips.

    Returns:
        uint8 ``(N, 3, S, S)``, of clips ``(N, F, 3, S, S)``, mapped from the cache, read only.

    Raises:
        DataError: an image cannot be read; the message names it.
    """
    about: dict[str, Any] = {"images": split.sha256, "geometry": geometry.model_dump()}
    shape: tuple[int, ...] = (len(split.examples), 3, geometry.size_px, geometry.size_px)
    if frames_per_clip:
        about["frames_per_clip"] = frames_per_clip
        shape = (shape[0], frames_per_clip, *shape[1:])

    def fill(array: npt.NDArray[Any]) -> None:
        for index, example in enumerate(tqdm(split.examples, f"images {split.name}", unit="image")):
            array[index] = _fitted(example.path, geometry, frames_per_clip)

    return _cached(cache, f"images-{split.name}", about, shape, dtype=np.uint8, fill=fill)


class Images(Protocol):
    """The images of a split as the network's squares, uint8 ``(N, 3, S, S)``.

    Clips are ``(N, F, 3, S, S)``.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Give N, 3, S, S, or N, F, 3, S, S."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Any: ...


class ShardedImages:
    """Images that stay in their shards, decoded in threads whenever they are asked for."""

    def __init__(self, split: Split, geometry: ImageGeometry) -> None:
        self._examples, self._geometry = split.examples, geometry
        self._threads = ThreadPoolExecutor()

    @property
    def shape(self) -> tuple[int, ...]:
        """Give N, 3, S, S."""
        return len(self), 3, self._geometry.size_px, self._geometry.size_px

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int | slice, /) -> npt.NDArray[np.uint8]:
        """Give one image, or a few of them.

        Raises:
            DataError: an image cannot be read; the message names it.
        """
        if isinstance(index, slice):
            return np.stack(list(self._threads.map(self._fitted, self._examples[index])))
        return self._fitted(self._examples[index])

    def _fitted(self, example: Example) -> npt.NDArray[np.uint8]:
        return _fitted(example.path, self._geometry, None)


def open_images(
    split: Split, geometry: ImageGeometry, cache: Path, frames_per_clip: int | None = None
) -> Images:
    """Give the split's images as squares: from the cache, or from shards as they are needed.

    Args:
        split: of images; or of clips, for a network that reads frames.
        geometry: how an image becomes a square.
        cache: where the squares are kept.
        frames_per_clip: F, of a network that reads frames.

    Raises:
        DataError: an image cannot be read, or there are clips and the network reads images, or the
            other way round.
    """
    if split.of_clips and not frames_per_clip:
        raise DataError(
            f"{split.name} holds clips, directories of frames, and the network reads images: set "
            "network.frames to lstm or mean"
        )
    if frames_per_clip and not split.of_clips:
        raise DataError(
            f"{split.name} holds images, and network.frames reads clips: give a directory of "
            "frames for each, or leave out network.frames"
        )
    if split.sharded:
        return ShardedImages(split, geometry)
    return fitted_images(split, geometry, cache, frames_per_clip)


def encoded_features(
    images_N3SS: Images, encoder: Encoder, split: Split, cache: Path
) -> npt.NDArray[np.float16]:
    """Give the features of all images under a frozen encoder, computed once.

    Returns:
        float16 ``(N, R, D)``, of clips ``(N, F, R, D)``, mapped from the cache, read only.
    """
    about = {
        "images": split.sha256,
        "size_px": images_N3SS.shape[-1],
        "encoder": encoder_sha256(encoder),
        **_kind_of_features(images_N3SS, encoder),
    }
    at_once = images_at_once(images_N3SS, ENCODE_BATCH)
    shape = (len(images_N3SS), *encode(encoder, images_N3SS[:1]).shape[1:])

    def fill(array: npt.NDArray[Any]) -> None:
        starts = range(0, len(images_N3SS), at_once)
        for start in tqdm(starts, f"features {split.name}", unit="batch"):
            stop = start + at_once
            array[start:stop] = encode(encoder, images_N3SS[start:stop]).cpu().numpy()

    return _cached(cache, f"features-{split.name}", about, shape, dtype=np.float16, fill=fill)


def _kind_of_features(images_N3SS: Images, encoder: Encoder) -> dict[str, Any]:
    """Tell features apart that one encoder gives of one split."""
    kind: dict[str, Any] = {} if encoder.grid else {"features": "vector"}
    if len(images_N3SS.shape) > 4:
        kind |= {"frames_per_clip": images_N3SS.shape[1], "quarters": encoder.quarters}
    return kind


def images_at_once(images_N3SS: Images, most: int) -> int:
    """Say how many images, or how many clips of as many frames, go through an encoder together."""
    return most if len(images_N3SS.shape) == 4 else max(1, most // images_N3SS.shape[1])


@torch.inference_mode()
def class_probabilities(
    images_N3SS: Images, encoder: Encoder, split: Split, cache: Path
) -> npt.NDArray[np.float16]:
    """Give what an encoder with classes thinks of all images, computed once.

    Returns:
        float16 ``(N, 1000)``, mapped from the cache, read only.
    """
    about = {"images": split.sha256, "size_px": images_N3SS.shape[-1]}
    about["classifier"] = encoder_sha256(encoder)

    def fill(array: npt.NDArray[Any]) -> None:
        starts = range(0, len(images_N3SS), ENCODE_BATCH)
        for start in tqdm(starts, f"classes {split.name}", unit="batch"):
            features_BRD = encode(encoder, images_N3SS[start : start + ENCODE_BATCH])
            found_BC = encoder.class_logits(features_BRD).softmax(-1)
            array[start : start + ENCODE_BATCH] = found_BC.cpu().numpy()

    shape = (len(images_N3SS), IMAGENET_CLASSES)
    return _cached(cache, f"classes-{split.name}", about, shape, dtype=np.float16, fill=fill)


@torch.inference_mode()
def encode(encoder: Encoder, images_N3SS: npt.NDArray[np.uint8]) -> torch.Tensor:
    """Return ``features_NRD`` of a few images, on the encoder's device, in evaluation mode.

    Of clips, uint8 ``(N, F, 3, S, S)``, they are ``features_NFRD``.
    """
    images = torch.from_numpy(np.array(images_N3SS)).to(encoder.mean.device)
    return network.encode(encoder.eval(), images)


def encoder_sha256(encoder: Encoder) -> str:
    """Hash an encoder's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _fitted(
    path: Path | Member, geometry: ImageGeometry, frames_per_clip: int | None
) -> npt.NDArray[np.uint8]:
    shown = image_or_clip(path, geometry, frames_per_clip or 1)
    return np.ascontiguousarray(np.moveaxis(shown, -1, -3))


def image_or_clip(
    path: Path | Member, geometry: ImageGeometry, frames_per_clip: int
) -> npt.NDArray[np.uint8]:
    """Give an image as the network sees it, uint8 ``(S, S, 3)``; or a clip, ``(F, S, S, 3)``.

    Args:
        path: of the image; of a clip the directory of its frames.
        geometry: how an image becomes a square.
        frames_per_clip: F. Of more frames so many are chosen evenly, of fewer some come repeatedly.

    Raises:
        DataError: it cannot be read; the message names it.
    """
    if not isinstance(path, Path) or not path.is_dir():
        return square(path, geometry)
    frames = frame_files(path)
    chosen = evenly(len(frames), frames_per_clip)
    squares = {n: square(frames[n], geometry) for n in set(chosen)}
    return np.stack([squares[n] for n in chosen])


def square(path: Path | Member, geometry: ImageGeometry) -> npt.NDArray[np.uint8]:
    """Give an image as the network sees it: uint8 ``(S, S, 3)``.

    Raises:
        DataError: it cannot be read; the message names it.
    """
    try:
        pixels_HWC = decode(path.read_bytes(), at_least_px=geometry.size_px, max_pixels=MAX_PIXELS)
    except ImageError as error:
        raise DataError(
            f"{path} cannot be used: {error} Replace it or take it off its list"
        ) from None
    return fit(
        pixels_HWC, size_px=geometry.size_px, how=geometry.fit, resampling=geometry.resampling
    )


def _cached(
    cache: Path,
    kind: str,
    about: dict[str, Any],
    shape: tuple[int, ...],
    *,
    dtype: Any,
    fill: Callable[[npt.NDArray[Any]], None],
) -> npt.NDArray[Any]:
    """Map an array that exists, or fill it under another name first and then rename it."""
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    path = cache / f"{kind}-{key}.npy"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        array = np.lib.format.open_memmap(unfinished, mode="w+", dtype=dtype, shape=shape)
        fill(array)
        array.flush()
        described = {**about, "shape": shape, "dtype": np.dtype(dtype).name}
        path.with_suffix(".json").write_text(json.dumps(described, indent=2) + "\n")
        unfinished.rename(path)
    return np.load(path, mmap_mode="r")  # type: ignore[no-any-return]
