"""What a run reads: splits, images as arrays, captions as ids."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from app.captioner.vocabulary import Vocabulary
from trainer.data.arrays import Images, open_images
from trainer.data.flickr8k import Split, has_split, read_split
from trainer.errors import DataError, TrainerError
from trainer.training.batches import Captions
from trainer.training.recipe import Recipe
from trainer.training.words import learn_vocabulary, with_new_words


@dataclass(frozen=True)
class TrainingData:
    """What a run reads: splits, their images as squares, training captions as ids.

    Attributes:
        train: the training images of all directories.
        dev: the dev images of all directories.
        dev_sets: those of each directory, by its name.
        train_images: of ``train``.
        dev_images: of ``dev``.
        captions: of ``train``.
        dev_captions: of ``dev``.
        sentences: that belong to no image; None without any.
        vocabulary: of the training captions; a word of sentences alone has no picture.
        cache: for what is computed of images.
    """

    train: Split
    dev: Split
    dev_sets: dict[str, Split]
    train_images: Images
    dev_images: Images
    captions: Captions
    dev_captions: Captions
    sentences: Captions | None
    vocabulary: Vocabulary
    cache: Path

    @property
    def identity(self) -> dict[str, str]:
        """Tell this data from other data, for who goes on with a run."""
        words = "\n".join(self.vocabulary.words).encode()
        return {
            "training images and captions": self.train.sha256,
            "dev images and captions": self.dev.sha256,
            "vocabulary": hashlib.sha256(words).hexdigest(),
        }

    @cached_property
    def about(self) -> dict[str, Any]:
        """Describe the splits for a manifest."""
        about = {split.name: _about(split) for split in (self.train, self.dev)}
        if len(self.dev_sets) > 1:
            about["dev_sets"] = {name: _about(split) for name, split in self.dev_sets.items()}
        return about


def read_data(
    recipe: Recipe,
    directories: Sequence[Path],
    cache: Path,
    *,
    sentences: Path | None = None,
    known: Vocabulary | None = None,
) -> TrainingData:
    """Read the splits ``train`` and ``dev`` of data directories.

    Args:
        recipe: says how often images are seen, and which words are known.
        directories: one or more; of several some may lack one of the two splits.
        cache: for what is computed of images.
        sentences: a text file with a sentence per line, for stages of the kind ``language``.
        known: words of the checkpoint that the run starts from: they keep their ids.

    Raises:
        TrainerError: files contradict each other, or no word is frequent enough.
    """
    train_sets, dev_sets = _splits(directories, "train"), _splits(directories, "dev")
    _expect_weights("data_weights", recipe.data_weights, train_sets)
    _expect_weights("dev_weights", recipe.dev_weights, dev_sets)
    train, dev = joined("train", train_sets), joined("dev", dev_sets)
    lines = _lines(sentences) if sentences else []
    vocabulary = _vocabulary(recipe, train, directories, known)
    weights = [
        weight
        for weight, split in zip(recipe.data_weights, train_sets.values(), strict=False)
        for _ in split.examples
    ]
    captions = Captions.of(train, vocabulary, recipe.vocabulary, weights)
    each, frames = recipe.captions_per_image, recipe.network.clip_frames
    return TrainingData(
        train,
        dev,
        dev_sets,
        open_images(train, recipe.image, cache, frames),
        open_images(dev, recipe.image, cache, frames),
        captions,
        Captions.of(dev, vocabulary, recipe.vocabulary),
        Captions.of_sentences(lines, vocabulary, recipe.vocabulary, each) if lines else None,
        vocabulary,
        cache,
    )


def joined(name: str, splits: dict[str, Split]) -> Split:
    """Make one split of those of several directories; images are named by their directory too.

    Raises:
        DataError: some lie in shards.
    """
    if len(splits) == 1:
        return next(iter(splits.values()))
    if any(split.sharded for split in splits.values()):
        raise DataError("several data directories cannot lie in shards: give image folders")
    return Split(
        name,
        tuple(
            replace(example, image=f"{directory}/{example.image}")
            for directory, split in splits.items()
            for example in split.examples
        ),
    )


def _splits(directories: Sequence[Path], name: str) -> dict[str, Split]:
    """Read a split wherever there is one, by the names of the directories."""
    if len(directories) == 1:
        return {directories[0].name: read_split(directories[0], name)}
    names = [directory.name for directory in directories]
    if len(set(names)) < len(names):
        raise DataError(f"data directories are told by their names, got {', '.join(names)}")
    there = [directory for directory in directories if has_split(directory, name)]
    if not there:
        raise DataError(f"none of {', '.join(names)} has a split {name!r}: add its list to one")
    return {directory.name: read_split(directory, name) for directory in there}


def _expect_weights(key: str, weights: Sequence[float], splits: dict[str, Split]) -> None:
    if weights and len(weights) != len(splits):
        raise TrainerError(
            f"{key} has {len(weights)} numbers, the splits come from {len(splits)} directories: "
            f"{', '.join(splits)}"
        )


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"sentences {path} cannot be read: {error}") from None
    found = [line for line in lines if any(map(str.isalnum, line))]
    if not found:
        raise DataError(f"sentences {path} holds none: expected one per line")
    return found


def _vocabulary(
    recipe: Recipe, train: Split, directories: Sequence[Path], known: Vocabulary | None
) -> Vocabulary:
    if known is not None:
        return with_new_words(known, recipe.vocabulary, train)
    vocabulary = learn_vocabulary(recipe.vocabulary, train)
    if not vocabulary.words:
        raise TrainerError(
            f"no word occurs {recipe.vocabulary.min_count} times in "
            f"{', '.join(map(str, directories))}: lower vocabulary.min_count or add captions"
        )
    return vocabulary


def _about(split: Split) -> dict[str, Any]:
    captions = sum(len(example.captions) for example in split.examples)
    return {"images": len(split.examples), "captions": captions, "sha256": split.sha256}
