"""What a run reads: splits, images as arrays, captions as ids."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from app.captioner.vocabulary import Vocabulary
from trainer.data.arrays import Images, open_images
from trainer.data.flickr8k import Split, read_split
from trainer.errors import TrainerError
from trainer.training.batches import Captions
from trainer.training.recipe import Recipe
from trainer.training.words import learn_vocabulary


@dataclass(frozen=True)
class TrainingData:
    """What a run reads: splits, their images as squares, training captions as ids."""

    train: Split
    dev: Split
    train_images: Images
    dev_images: Images
    captions: Captions
    vocabulary: Vocabulary
    cache: Path

    @cached_property
    def about(self) -> dict[str, Any]:
        """Describe the splits for a manifest."""
        return {split.name: _about(split) for split in (self.train, self.dev)}


def read_data(recipe: Recipe, directory: Path, cache: Path) -> TrainingData:
    """Read the splits ``train`` and ``dev`` of a data directory.

    Raises:
        TrainerError: files contradict each other, or no word is frequent enough.
    """
    train, dev = read_split(directory, "train"), read_split(directory, "dev")
    vocabulary = _vocabulary(recipe, train, directory)
    return TrainingData(
        train,
        dev,
        open_images(train, recipe.image, cache),
        open_images(dev, recipe.image, cache),
        Captions.of(train, vocabulary, recipe.vocabulary),
        vocabulary,
        cache,
    )


def _vocabulary(recipe: Recipe, train: Split, directory: Path) -> Vocabulary:
    vocabulary = learn_vocabulary(recipe.vocabulary, train)
    if not vocabulary.words:
        raise TrainerError(
            f"no word occurs {recipe.vocabulary.min_count} times in {directory}: lower "
            "vocabulary.min_count or add captions"
        )
    return vocabulary


def _about(split: Split) -> dict[str, Any]:
    captions = sum(len(example.captions) for example in split.examples)
    return {"images": len(split.examples), "captions": captions, "sha256": split.sha256}
