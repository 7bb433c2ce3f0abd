"""Flickr8k's official layout, or shards -> frozen splits, and the refusal of files that are wrong.

One directory holds an image folder (of files, or of clips: directories of frames),
``Flickr8k.token.txt`` with lines ``image.jpg#n<TAB>caption``, and one list of image names per
split, ``Flickr_8k.<split>Images.txt``. A directory of any size in this layout is welcome; one that
contradicts itself is not. A split without a list may lie in shards, see `trainer.data.shards`.
"""

import hashlib
import json
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from trainer.data.clips import frame_files
from trainer.data.records import composed
from trainer.data.shards import Member, read_shard, refuse_odd_shards, shards_of
from trainer.data.text_files import read_captions, read_list
from trainer.errors import DataError

IMAGE_FOLDERS = ("Flicker8k_Dataset", "Flickr8k_Dataset")
TOKEN_FILE = "Flickr8k.token.txt"  # noqa: S105 - a file name, no secret
OFFICIAL_IMAGES = {"train": 6000, "dev": 1000, "test": 1000}
OFFICIAL_TOKEN_IMAGES = 8092
CAPTIONS_PER_IMAGE = 5

# A copy that circulates: 103 images too many, some caption lines missing, one line glued to the
# next, and longer lists. Trained on it, scores compare with nobody's.
_BROKEN_TOKEN_IMAGES = 8195
_BROKEN_LISTS = {"train": 6074, "test": 1013}

_LIST_NAME = re.compile(r"Flickr_8k\.(.+)Images\.txt")


@dataclass(frozen=True)
class Example:
    """One image with what people said about it.

    Attributes:
        image: file name, the key of all files of the layout.
        path: where the image lies, a file or a member of a shard; of a clip the directory.
        captions: one or more, as written, in the order of their ``#n``.
    """

    image: str
    path: Path | Member
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Split:
    """The images of one list or of its shards, in their order."""

    name: str
    examples: tuple[Example, ...]
    sharded: bool = False

    @cached_property
    def of_clips(self) -> bool:
        """Say whether it holds clips in place of images."""
        return any(map(is_clip, self.examples))

    @cached_property
    def sha256(self) -> str:
        """Hash what training sees: names, captions and the bytes of the images, in order.

        Computed when first asked for. The bytes are then read in full, about a gigabyte for the
        original Flickr8k: a picture that was resized or damaged keeps its name, and may keep its
        size, but trains another network. The directory and the split's name are left out, so the
        same data gives the same hash anywhere, in shards too. There the hash that lies beside an
        image is taken at its word.

        Returns:
            64 hexadecimal digits.
        """
        digest = hashlib.sha256()
        for example in self.examples:
            pixels = _sha256(example.path)
            digest.update(json.dumps([example.image, example.captions, pixels]).encode() + b"\n")
        return digest.hexdigest()


def is_clip(example: Example) -> bool:
    """Tell a directory of frames from an image."""
    return isinstance(example.path, Path) and example.path.is_dir()


def still_of(example: Example) -> Path | Member:
    """Say where the image lies; of a clip the frame in the middle."""
    if not isinstance(example.path, Path) or not is_clip(example):
        return example.path
    frames = frame_files(example.path)
    return frames[len(frames) // 2]


def read_split(directory: Path, split: str, *, images: str | None = None) -> Split:
    """Read one split of a directory in the official layout, or of shards.

    Args:
        directory: holds the image folder, the token file and the lists; or shards.
        split: any name; ``dev`` stands for ``Flickr_8k.devImages.txt``.
        images: name of the image folder, where it is none of `IMAGE_FOLDERS`.

    Raises:
        DataError: a file is missing or malformed, a listed image lacks its file or its captions,
            an image occurs in two of train, dev and test, the copy is one known to be broken, there
            are images and clips, or a clip without a frame.
    """
    require_directory(directory)
    if split not in split_names(directory):
        shards = shards_of(directory, split)
        if shards:
            return _from_shards(split, shards)
        refuse_odd_shards(directory, split)
    listing = list_path(directory, split)
    names = read_list(listing)
    captions = read_captions(directory / TOKEN_FILE)
    folder = image_folder(directory, images)
    _refuse_broken_copy(directory, split, len(names), captions)
    _refuse_overlap(directory, split, names)
    _refuse_absent(listing, names, captions, f"caption in {directory / TOKEN_FILE}")
    files = {composed(file.name): file for file in folder.iterdir()}
    _refuse_absent(listing, names, files, f"file in {folder}")
    found = Split(split, tuple(Example(name, files[name], captions[name]) for name in names))
    _refuse_mixture(found)
    return found


def _from_shards(split: str, shards: Sequence[Path]) -> Split:
    samples = [sample for shard in shards for sample in read_shard(shard)]
    named = {sample.image: sample for sample in samples}
    if len(named) != len(samples) or not samples:
        raise DataError(
            f"{shards[0]} and the {len(shards) - 1} other shards of {split} hold {len(samples)} "
            f"images under {len(named)} names, expected a name for each: write the shards again"
        )
    found = (Example(name, sample.member, sample.captions) for name, sample in named.items())
    return Split(split, tuple(found), sharded=True)


def has_split(directory: Path, split: str) -> bool:
    """Say whether a directory has a split, by a list or in shards."""
    return split in split_names(directory) or bool(shards_of(directory, split))


def require_directory(directory: Path) -> None:
    """Tell a wrong path from a directory that lacks something.

    Raises:
        DataError: there is no such directory.
    """
    if not directory.is_dir():
        raise DataError(f"{directory} does not exist: name the directory that holds the data")


def list_path(directory: Path, split: str) -> Path:
    """Give the path of a split's list of images.

    Raises:
        DataError: there is no such list; the message names those that there are.
    """
    path = directory / f"Flickr_8k.{split}Images.txt"
    if not path.is_file():
        there = ", ".join(split_names(directory)) or "none"
        raise DataError(
            f"split {split!r} expects {path}, which is missing; splits with a list there: {there}. "
            "Name one of them, or add the list"
        )
    return path


def split_names(directory: Path) -> list[str]:
    """Give the splits that have a list in the directory, sorted."""
    found = (_LIST_NAME.fullmatch(path.name) for path in directory.glob("Flickr_8k.*Images.txt"))
    return sorted(match[1] for match in found if match)


def image_folder(directory: Path, images: str | None = None) -> Path:
    """Find the image folder: the one named, or the first of `IMAGE_FOLDERS` that exists.

    Raises:
        DataError: no such folder.
    """
    expected = IMAGE_FOLDERS if images is None else (images,)
    for name in expected:
        if (directory / name).is_dir():
            return directory / name
    raise DataError(
        f"{directory} expects an image folder {' or '.join(expected)} and has none: unpack the "
        "images there, or name the folder they lie in"
    )


def check_counts(directory: Path, *, images: str | None = None) -> list[str]:
    """Compare a directory with the canonical Flickr8k and read every split it has.

    Returns:
        Findings, one sentence each, that are no errors: own data and subsets differ from
        the canonical set by right. Empty for the canonical set.

    Raises:
        DataError: what `read_split` refuses, in any split, or no list at all.
    """
    require_directory(directory)
    splits = [read_split(directory, name, images=images) for name in split_names(directory)]
    if not splits:
        raise DataError(f"{directory} expects Flickr_8k.<split>Images.txt and has none: add a list")
    return [
        *_token_findings(len(read_captions(directory / TOKEN_FILE))),
        *_absent_findings({split.name for split in splits}),
        *(finding for split in splits for finding in _split_findings(split)),
    ]


def _sha256(path: Path | Member) -> str:
    if isinstance(path, Member) and path.sha256:
        return path.sha256
    if isinstance(path, Path) and path.is_dir():
        frames = "".join(map(_sha256, frame_files(path)))
        return hashlib.sha256(frames.encode()).hexdigest()
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _token_findings(images: int) -> list[str]:
    if images == OFFICIAL_TOKEN_IMAGES:
        return []
    official = OFFICIAL_TOKEN_IMAGES
    return [f"{TOKEN_FILE} has captions for {images} images, the official file for {official}"]


def _absent_findings(present: Container[str]) -> list[str]:
    return [
        f"{name} has no list, the official set names {images} images"
        for name, images in OFFICIAL_IMAGES.items()
        if name not in present
    ]


def _split_findings(split: Split) -> Iterator[str]:
    listed, official = len(split.examples), OFFICIAL_IMAGES.get(split.name)
    if official is None:
        yield f"{split.name} is no official split; it lists {listed} images"
    elif listed != official:
        yield f"{split.name} lists {listed} images, the official list {official}"
    odd = [item.image for item in split.examples if len(item.captions) != CAPTIONS_PER_IMAGE]
    if odd:
        yield (f"{split.name} has {CAPTIONS_PER_IMAGE} captions per image except for {_some(odd)}")


def _refuse_broken_copy(
    directory: Path, split: str, listed: int, captions: Mapping[str, Sequence[str]]
) -> None:
    broken_list = len(captions) >= OFFICIAL_TOKEN_IMAGES and listed == _BROKEN_LISTS.get(split)
    if broken_list or len(captions) == _BROKEN_TOKEN_IMAGES:
        raise DataError(
            f"{directory} is the damaged copy of Flickr8k that circulates: expected captions for "
            f"{OFFICIAL_TOKEN_IMAGES} images and lists of 6000, 1000 and 1000, got captions for "
            f"{len(captions)} and {listed} in {split}: fetch the official text files"
        )


def _refuse_overlap(directory: Path, split: str, names: Iterable[str]) -> None:
    """Only among train, dev and test: a list of another name may well be a part of one of them."""
    if split not in OFFICIAL_IMAGES:
        return
    for other in sorted(OFFICIAL_IMAGES.keys() & set(split_names(directory)) - {split}):
        shared = set(names).intersection(read_list(list_path(directory, other)))
        if shared:
            raise DataError(
                f"{split} and {other} share {_some(shared)}, expected none: a score on images seen "
                f"in training is worth nothing, remove them from one list of {directory}"
            )


def _refuse_mixture(split: Split) -> None:
    if not split.of_clips:
        return
    images = [example.image for example in split.examples if not is_clip(example)]
    if images:
        raise DataError(
            f"{split.name} lists images and clips, expected one kind: put each image into a "
            f"directory of its name, or take them off the list: {_some(images)}"
        )
    for example in split.examples:
        if isinstance(example.path, Path):
            frame_files(example.path)


def _refuse_absent(listing: Path, names: Iterable[str], there: Container[str], what: str) -> None:
    absent = [name for name in names if name not in there]
    if absent:
        raise DataError(
            f"{listing} expects a {what} for each image, missing for {_some(absent)}: restore "
            "them, or remove the names from the list"
        )


def _some(names: Iterable[str]) -> str:
    first, *rest = sorted(names)
    return f"{first} and {len(rest)} more" if rest else first
