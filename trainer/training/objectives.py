"""What a step makes smaller: cross-entropy on the references, or the self-critical loss.

B images of a step, K captions of an image, T steps, R regions, D feature width, V words
"""

from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from app.captioner.model.network import Decoder
from app.captioner.vocabulary import PAD
from trainer.training.batches import targets
from trainer.training.recipe import Recipe, Stage
from trainer.training.reward import CiderD, reference_ids
from trainer.training.self_critical import policy_loss, rewards, sample
from trainer.training.training_data import TrainingData


class Objective(Protocol):
    """What a stage trains for."""

    def __call__(
        self, decoder: Decoder, features_BRD: Tensor, indices_B: Tensor, words_BKT: Tensor
    ) -> dict[str, Tensor]:
        """Give ``loss``, with gradients, and whatever else the log should show."""


class CrossEntropy:
    """The mean over the words taught, in nats."""

    def __init__(self, label_smoothing: float) -> None:
        self._label_smoothing = label_smoothing

    def __call__(
        self,
        decoder: Decoder,
        features_BRD: Tensor,
        indices_B: Tensor,  # noqa: ARG002
        words_BKT: Tensor,
    ) -> dict[str, Tensor]:
        """Read the references word by word (teacher forcing)."""
        next_BKT = targets(words_BKT)
        taught_BKT = next_BKT != PAD
        logits_NV, _ = decoder(features_BRD, words_BKT[..., :-1], taught_BKT)
        loss = F.cross_entropy(
            logits_NV, next_BKT[taught_BKT], label_smoothing=self._label_smoothing
        )
        return {"loss": loss}


class SelfCritical:
    """Samples against their siblings, and a share of cross-entropy.

    See `trainer.training.self_critical`.

    The share is there to keep the language: one reference per image, drawn by chance, will do.
    """

    def __init__(self, stage: Stage, data: TrainingData, max_words: int) -> None:
        self._share, self._samples = stage.cross_entropy_share, stage.samples_per_image
        self._temperature, self._max_words = stage.temperature, max_words
        self._cross_entropy = CrossEntropy(stage.label_smoothing)
        self._scorer = CiderD(reference_ids(data.train, data.vocabulary))

    def __call__(
        self, decoder: Decoder, features_BRD: Tensor, indices_B: Tensor, words_BKT: Tensor
    ) -> dict[str, Tensor]:
        """Draw, score and compare; ``reward`` is the mean CIDEr-D of the samples."""
        drawn = sample(
            decoder, features_BRD, self._samples, self._max_words, temperature=self._temperature
        )
        rewards_BK = rewards(self._scorer, indices_B, drawn)
        loss = policy_loss(drawn, rewards_BK) * (1 - self._share)
        if self._share:
            taught = self._cross_entropy(decoder, features_BRD, indices_B, words_BKT[:, :1])
            loss = loss + self._share * taught["loss"]
        return {"loss": loss, "reward": rewards_BK.mean()}


def objective(recipe: Recipe, stage: Stage, data: TrainingData) -> Objective:
    """Give the objective of a stage."""
    if stage.kind == "self_critical":
        return SelfCritical(stage, data, recipe.search.max_words)
    return CrossEntropy(stage.label_smoothing)
