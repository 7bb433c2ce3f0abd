"""Where the features of a stage come from: computed once, or from augmented images at every step.

B images of a step, R regions, D feature width. Of clips of F frames ``features_BRD`` is
``features_BFRD``.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Generator, Tensor

from app.captioner.architecture import QUARTERS
from app.captioner.model import network
from app.captioner.model.network import Encoder
from trainer.data.arrays import encode, encoded_features, images_at_once
from trainer.training.augmentation import AugmentationParams, augment
from trainer.training.folding import fold_with_gradients
from trainer.training.training_data import TrainingData

DEV_BATCH = 50


class FeatureSource(Protocol):
    """Where the features of a stage come from."""

    def begin(self, indices_B: Tensor, generator: Generator, share: slice) -> Callable[[], Tensor]:
        """Begin to read training images, for ``features_BRD`` to be asked for later.

        Args:
            indices_B: of all images of the step.
            generator: what chance decides is drawn for all of them.
            share: which of them to read.
        """

    def dev(self) -> Iterator[Tensor]:
        """Give ``features_BRD`` of all dev images, batch by batch, in order."""


class CachedFeatures:
    """Features of an encoder at rest: computed once, then read."""

    def __init__(self, data: TrainingData, encoder: Encoder) -> None:
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


class NoFeatures:
    """In place of images that nobody has: one region without anything in it."""

    def __init__(self, data: TrainingData, encoder: Encoder) -> None:
        self._on_dev = AugmentedFeatures(data, encoder)
        self._encoder = encoder

    def begin(
        self,
        indices_B: Tensor,
        generator: Generator,  # noqa: ARG002
        share: slice,
    ) -> Callable[[], Tensor]:
        """Give zeros ``features_B1D`` when asked for; nothing is drawn."""
        regions = QUARTERS if self._encoder.quarters else 1
        size = len(indices_B[share]), regions, self._encoder.width
        return partial(torch.zeros, size, device=self._encoder.mean.device)

    def dev(self) -> Iterator[Tensor]:
        """Give ``features_BRD`` of all dev images, batch by batch, in order."""
        return self._on_dev.dev()


class AugmentedFeatures:
    """Features of an encoder that learns: augmented images go through it at every step."""

    def __init__(self, data: TrainingData, encoder: Encoder) -> None:
        self._data, self._encoder = data, encoder
        self._folded = fold_with_gradients(encoder)
        # one thread of torch each: teams of threads would stand in the way of the step at work
        alone = partial(torch.set_num_threads, 1)
        self._threads = ThreadPoolExecutor(os.cpu_count(), initializer=alone)

    def begin(self, indices_B: Tensor, generator: Generator, share: slice) -> Callable[[], Tensor]:
        """Begin to crop, mirror and tint training images in threads, while the step before runs."""
        indices = indices_B.tolist()
        drawn = [self._draw_params(index, generator) for index in indices]
        images = self._threads.map(self._augmented, indices[share], drawn[share])
        return partial(self._encode, images)

    def dev(self) -> Iterator[Tensor]:
        """Give ``features_BRD`` of all dev images, batch by batch, in order."""
        images = self._data.dev_images
        at_once = images_at_once(images, DEV_BATCH)
        for start in range(0, len(images), at_once):
            yield encode(self._encoder, images[start : start + at_once])

    def _draw_params(self, index: int, generator: Generator) -> AugmentationParams:
        mirrorable = bool(self._data.captions.mirrorable_N[index])
        side_px = self._data.train_images.shape[-1]
        return AugmentationParams.draw(side_px, mirrorable=mirrorable, generator=generator)

    def _augmented(self, index: int, params: AugmentationParams) -> Tensor:
        return augment(torch.from_numpy(self._data.train_images[index].copy()), params)

    def _encode(self, images: Iterator[Tensor]) -> Tensor:
        images_BCHW = torch.stack(list(images)).to(self._encoder.mean.device)
        return network.encode(self._folded, images_BCHW).float()
