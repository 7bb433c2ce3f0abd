"""What a run reads: splits, images as arrays, captions as ids; and where features come from.

B images of a step, R regions, D feature width
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Generator, Tensor

from app.captioner.network import Encoder
from app.captioner.vocabulary import Vocabulary, tokenise
from trainer.arrays import Images, encode, encoded_features, squares
from trainer.batches import Captions, Look, augment
from trainer.data import Split, data_sha256, read_split
from trainer.errors import TrainerError
from trainer.recipe import Recipe

DEV_BATCH = 50


@dataclass(frozen=True)
class Data:
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


class Features(Protocol):
    """Where the features of a stage come from."""

    def begin(self, indices_B: Tensor, generator: Generator, share: slice) -> Callable[[], Tensor]:
        """Begin to read training images, for ``features_BRD`` to be asked for later.

        Args:
            indices_B: of all images of the step.
            generator: what chance decides is drawn for all of them.
            share: which of them are wanted.
        """

    def dev(self) -> Iterator[Tensor]:
        """Give ``features_BRD`` of all dev images, batch by batch, in order."""


class CachedFeatures:
    """Features of an encoder at rest: computed once, then read."""

    def __init__(self, data: Data, encoder: Encoder) -> None:
        self._device = encoder.mean.device
        self._train = encoded_features(data.train_images, encoder, data.train, data.cache)
        self._dev = encoded_features(data.dev_images, encoder, data.dev, data.cache)

    def begin(
        self,
        indices_B: Tensor,
        generator: Generator,  # noqa: ARG002
        share: slice,
    ) -> Callable[[], Tensor]:
        """Have ``features_BRD`` of training images read when asked for; nothing is drawn."""
        return partial(self._read, indices_B[share])

    def _read(self, indices_B: Tensor) -> Tensor:
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
        self._threads = ThreadPoolExecutor()

    def begin(self, indices_B: Tensor, generator: Generator, share: slice) -> Callable[[], Tensor]:
        """Begin to crop, mirror and tint training images in threads, while the step before runs."""
        indices = indices_B.tolist()
        looks = [self._look(index, generator) for index in indices]
        images = self._threads.map(self._augmented, indices[share], looks[share])
        return partial(self._encode, images)

    def dev(self) -> Iterator[Tensor]:
        """Give ``features_BRD`` of all dev images, batch by batch, in order."""
        images = self._data.dev_images
        for start in range(0, len(images), DEV_BATCH):
            yield encode(self._encoder, images[start : start + DEV_BATCH])

    def _look(self, index: int, generator: Generator) -> Look:
        mirrorable = bool(self._data.captions.mirrorable_N[index])
        side_px = self._data.train_images.shape[-1]
        return Look.draw(side_px, mirrorable=mirrorable, generator=generator)

    def _augmented(self, index: int, look: Look) -> Tensor:
        return augment(torch.from_numpy(self._data.train_images[index].copy()), look)

    def _encode(self, images: Iterator[Tensor]) -> Tensor:
        images_BCHW = torch.stack(list(images)).to(self._encoder.mean.device)
        features: Tensor = self._encoder(images_BCHW)
        return features.float()


def read_data(recipe: Recipe, directory: Path, cache: Path) -> Data:
    """Read the splits ``train`` and ``dev`` of a data directory.

    Raises:
        TrainerError: files contradict each other, or no word is frequent enough.
    """
    train, dev = read_split(directory, "train"), read_split(directory, "dev")
    vocabulary = _vocabulary(recipe, train, directory)
    return Data(
        train,
        dev,
        squares(train, recipe.image, cache),
        squares(dev, recipe.image, cache),
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
