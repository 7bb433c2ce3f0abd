"""What a run reads: splits, images as arrays, captions as ids; and where features come from.

B images of a step, R regions, D feature width
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Generator, Tensor
from tqdm import tqdm

from app.captioner.network import Encoder
from app.captioner.vocabulary import Vocabulary, tokenise
from trainer.batches import Captions, augment
from trainer.data import Split, check_counts, data_sha256, read_split
from trainer.errors import TrainerError
from trainer.prepare import encode, encoded_features, fitted_images
from trainer.recipe import Recipe

DEV_BATCH = 50


@dataclass(frozen=True)
class Data:
    """What a run reads: splits, their images as arrays, training captions as ids."""

    train: Split
    dev: Split
    train_images: npt.NDArray[np.uint8]
    dev_images: npt.NDArray[np.uint8]
    captions: Captions
    vocabulary: Vocabulary
    cache: Path

    @cached_property
    def about(self) -> dict[str, Any]:
        """Describe the splits for a manifest."""
        return {split.name: _about(split) for split in (self.train, self.dev)}


class Features(Protocol):
    """Where the features of a stage come from."""

    def train(self, indices_B: Tensor, generator: Generator) -> Tensor:
        """Give ``features_BRD`` of training images."""

    def dev(self) -> Iterator[Tensor]:
        """Give ``features_BRD`` of all dev images, batch by batch, in order."""


class CachedFeatures:
    """Features of an encoder at rest: computed once, then read."""

    def __init__(self, data: Data, encoder: Encoder) -> None:
        self._device = encoder.mean.device
        self._train = encoded_features(data.train_images, encoder, data.train, data.cache)
        self._dev = encoded_features(data.dev_images, encoder, data.dev, data.cache)

    def train(self, indices_B: Tensor, generator: Generator) -> Tensor:  # noqa: ARG002
        """Give ``features_BRD`` of training images; nothing is drawn."""
        return torch.from_numpy(self._train[indices_B.numpy()]).to(self._device).float()

    def dev(self) -> Iterator[Tensor]:
        """Give ``features_BRD`` of all dev images, batch by batch, in order."""
        for start in range(0, len(self._dev), DEV_BATCH):
            block = np.array(self._dev[start : start + DEV_BATCH])
            yield torch.from_numpy(block).to(self._device).float()


class AugmentedFeatures:
    """Features of an encoder that learns: augmented images go through it at every step."""

    def __init__(self, data: Data, encoder: Encoder) -> None:
        self._data, self._encoder = data, encoder

    def train(self, indices_B: Tensor, generator: Generator) -> Tensor:
        """Give ``features_BRD`` of training images, cropped, mirrored and tinted."""
        augmented = [self._augmented(index, generator) for index in indices_B.tolist()]
        images_BCHW = torch.stack(augmented).to(self._encoder.mean.device)
        features: Tensor = self._encoder(images_BCHW)
        return features

    def dev(self) -> Iterator[Tensor]:
        """Give ``features_BRD`` of all dev images, batch by batch, in order."""
        images = self._data.dev_images
        for start in range(0, len(images), DEV_BATCH):
            yield encode(self._encoder, images[start : start + DEV_BATCH])

    def _augmented(self, index: int, generator: Generator) -> Tensor:
        image = torch.from_numpy(self._data.train_images[index].copy())
        mirrorable = bool(self._data.captions.mirrorable_N[index])
        return augment(image, mirrorable=mirrorable, generator=generator)


def read_data(recipe: Recipe, directory: Path, cache: Path) -> Data:
    """Read the splits ``train`` and ``dev`` of a data directory.

    Raises:
        TrainerError: files contradict each other, or no word is frequent enough.
    """
    for finding in check_counts(directory):
        tqdm.write(f"note: {finding}")
    train, dev = read_split(directory, "train"), read_split(directory, "dev")
    vocabulary = _vocabulary(recipe, train, directory)
    return Data(
        train,
        dev,
        fitted_images(train, recipe.image, cache),
        fitted_images(dev, recipe.image, cache),
        Captions.of(train, vocabulary, recipe.vocabulary),
        vocabulary,
        cache,
    )


def _vocabulary(recipe: Recipe, train: Split, directory: Path) -> Vocabulary:
    tokens = (tokenise(text) for example in train.examples for text in example.captions)
    vocabulary = Vocabulary.build(tokens, at_least=recipe.vocabulary.at_least)
    if not vocabulary.words:
        raise TrainerError(
            f"no word occurs {recipe.vocabulary.at_least} times in {directory}: lower "
            "vocabulary.at_least or add captions"
        )
    return vocabulary


def _about(split: Split) -> dict[str, Any]:
    captions = sum(len(example.captions) for example in split.examples)
    return {"images": len(split.examples), "captions": captions, "sha256": data_sha256(split)}
