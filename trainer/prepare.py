"""The verb ``prepare``, and splits of files -> arrays in a cache: fitted images, frozen features.

N images of a split, S side of the square, R regions, D feature width. Every array ``<key>.npy`` has
a neighbour ``<key>.json`` that says what it holds; a key is a hash of all that went in.
"""

import argparse
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from app.captioner import image
from app.captioner.checkpoint import ImageGeometry
from app.captioner.errors import ImageError
from app.captioner.network import Encoder
from app.captioner.vocabulary import tokenise
from trainer.data import Split, check_counts, data_sha256, read_split, split_names
from trainer.doctor import diagnose
from trainer.errors import DataError
from trainer.importing import (
    DEV_SHARE,
    gather,
    renamed_splits,
    split_items,
    unused_files,
    write_layout,
)
from trainer.pixels import MAX_PIXELS
from trainer.rows import Keys
from trainer.sources import READERS, kind_of, read_source

ENCODE_BATCH = 32


def fitted_images(split: Split, geometry: ImageGeometry, cache: Path) -> npt.NDArray[np.uint8]:
    """Give the split's images as the network's squares, decoded once.

    Returns:
        uint8 ``(N, 3, S, S)``, mapped from the cache, read only.

    Raises:
        DataError: an image cannot be read; the message names it.
    """
    about = {"images": data_sha256(split), "geometry": geometry.model_dump()}
    shape = (len(split.examples), 3, geometry.size_px, geometry.size_px)

    def fill(array: npt.NDArray[Any]) -> None:
        for index, example in enumerate(tqdm(split.examples, f"images {split.name}", unit="image")):
            array[index] = _fitted(example.path, geometry)

    return _cached(cache, f"images-{split.name}", about, shape, dtype=np.uint8, fill=fill)


def encoded_features(
    images_N3SS: npt.NDArray[np.uint8], encoder: Encoder, split: Split, cache: Path
) -> npt.NDArray[np.float16]:
    """Give the features of all images under a frozen encoder, computed once.

    Returns:
        float16 ``(N, R, D)``, mapped from the cache, read only.
    """
    about = {
        "images": data_sha256(split),
        "size_px": images_N3SS.shape[-1],
        "encoder": encoder_sha256(encoder),
    }
    shape = (len(images_N3SS), *encode(encoder, images_N3SS[:1]).shape[1:])

    def fill(array: npt.NDArray[Any]) -> None:
        starts = range(0, len(images_N3SS), ENCODE_BATCH)
        for start in tqdm(starts, f"features {split.name}", unit="batch"):
            stop = start + ENCODE_BATCH
            array[start:stop] = encode(encoder, images_N3SS[start:stop]).cpu().numpy()

    return _cached(cache, f"features-{split.name}", about, shape, dtype=np.float16, fill=fill)


@torch.inference_mode()
def encode(encoder: Encoder, images_N3SS: npt.NDArray[np.uint8]) -> torch.Tensor:
    """Return ``features_NRD`` of a few images, on the encoder's device, in evaluation mode."""
    images = torch.from_numpy(np.array(images_N3SS)).to(encoder.mean.device)
    features: torch.Tensor = encoder.eval()(images)
    return features


def encoder_sha256(encoder: Encoder) -> str:
    """Hash an encoder's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _fitted(path: Path, geometry: ImageGeometry) -> npt.NDArray[np.uint8]:
    try:
        image_CHW = image.decode(
            path.read_bytes(), at_least_px=geometry.size_px, max_pixels=MAX_PIXELS
        )
    except ImageError as error:
        raise DataError(
            f"{path} cannot be used: {error} Replace it or take it off its list"
        ) from None
    array: npt.NDArray[np.uint8] = image.fit(
        image_CHW, size_px=geometry.size_px, how=geometry.fit
    ).numpy()
    return array


def _cached(
    cache: Path,
    kind: str,
    about: dict[str, Any],
    shape: tuple[int, ...],
    *,
    dtype: Any,
    fill: Callable[[npt.NDArray[Any]], None],
) -> npt.NDArray[Any]:
    """Map an array that exists, or fill it under another name first, so a kill leaves no half."""
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``prepare``."""
    origin = parser.add_mutually_exclusive_group(required=True)
    origin.add_argument("--data", type=Path, help="directory in Flickr8k's layout, to be cached")
    origin.add_argument(
        "--from", type=Path, dest="source", metavar="FILE", help="captions to be imported"
    )
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"), help="where arrays go")
    parser.add_argument("--size-px", type=int, default=224, help="side of the network's square")
    parser.add_argument("--fit", choices=["squeeze", "crop", "pad"], default="squeeze")
    _add_import_arguments(parser.add_argument_group("with --from"))


def _add_import_arguments(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--images", type=Path, metavar="FOLDER", help="where the images lie")
    group.add_argument("--out", type=Path, metavar="DIR", help="new directory in Flickr8k's layout")
    group.add_argument("--format", choices=[*READERS], help="in place of the file's suffix")
    group.add_argument("--image-key", default="image", help="column or key of the image's name")
    group.add_argument("--caption-key", default="caption", help="column or key of the caption")
    group.add_argument("--split-key", default="split", help="column or key of the split, optional")
    group.add_argument("--dev-share", type=float, metavar="SHARE", help=f"default {DEV_SHARE}")
    group.add_argument("--seed", type=int, help="of the split by chance, default 1")


def run(args: argparse.Namespace) -> int:
    """Import captions, or check a data directory and fill the cache of images."""
    return _fill_cache(args) if args.source is None else _import(args)


def _fill_cache(args: argparse.Namespace) -> int:
    for finding in check_counts(args.data):
        print(f"note: {finding}", file=sys.stderr)
    geometry = ImageGeometry(size_px=args.size_px, fit=args.fit)
    for name in split_names(args.data):
        split = read_split(args.data, name)
        fitted_images(split, geometry, args.cache)
        print(_describe(split))
    return 0


def _import(args: argparse.Namespace) -> int:
    """Write the directory, then let the doctor see it."""
    _refuse_incomplete(args)
    kind = args.format or kind_of(args.source)
    print(f"{args.source} is read as {kind}")
    rows = read_source(args.source, kind, Keys(args.image_key, args.caption_key, args.split_key))
    items = gather(rows, args.images)
    by_chance = items[0].split is None
    if not by_chance and (args.dev_share, args.seed) != (None, None):
        raise DataError(f"{args.source} has its own splits: leave out --dev-share and --seed")
    share = DEV_SHARE if args.dev_share is None else args.dev_share
    splits = split_items(items, dev_share=share, seed=1 if args.seed is None else args.seed)
    write_layout(splits, args.out)
    how = f"split by chance, dev share {share:g}" if by_chance else "split as in the source"
    for line in [*unused_files(rows, args.images), *renamed_splits(rows), how]:
        print(line)
    for name, of in splits.items():
        print(f"{name}: {len(of)} images, {sum(len(item.captions) for item in of)} captions")
    return diagnose(args.out)


def _refuse_incomplete(args: argparse.Namespace) -> None:
    if args.images is None or args.out is None:
        raise DataError("--from expects --images FOLDER and --out DIR as well: name both")
    if not args.images.is_dir():
        raise DataError(f"{args.images} is no folder: name the folder that holds the images")
    if args.out.exists():
        raise DataError(f"{args.out} exists: name a new directory, or remove it first")
    if args.dev_share is not None and not 0 < args.dev_share < 1:
        raise DataError(f"--dev-share is {args.dev_share:g}: expected a number between 0 and 1")


def _describe(split: Split) -> str:
    captions = [tokenise(text) for example in split.examples for text in example.captions]
    words = Counter(word for caption in captions for word in caption)
    mean = sum(words.values()) / len(captions)
    frequent = sum(count >= 5 for count in words.values())
    return (
        f"{split.name}: {len(split.examples)} images, {len(captions)} captions of {mean:.1f} "
        f"words, {len(words)} words, {frequent} of them at least 5 times, "
        f"sha256 {data_sha256(split)[:12]}"
    )
