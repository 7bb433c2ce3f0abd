"""The stages of a run: rates, epochs, steps, dev scores.

B images of a step, K captions of an image, T steps, R regions, D feature width, V words
"""

import json
import math
import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from app.captioner.checkpoint import Checkpoint, Manifest
from app.captioner.network import Network
from app.captioner.pipeline import Captioner
from app.captioner.vocabulary import PAD
from trainer.batches import targets
from trainer.inputs import AugmentedFeatures, CachedFeatures, Data, Features
from trainer.origin import source_commit, versions
from trainer.recipe import Recipe, Stage
from trainer.run import Progress, Run
from trainer.scoring import Scores, score

FEW_DISTINCT_PERCENT = 10


@dataclass(frozen=True)
class Job:
    """What all stages of a run share."""

    recipe: Recipe
    network: Network
    data: Data
    run: Run

    @property
    def device(self) -> torch.device:
        """Say where the network is."""
        return self.network.encoder.mean.device

    def unpublished(self, history: list[dict[str, Any]] | None = None) -> Checkpoint:
        """Give the network as a checkpoint that nobody has published."""
        recipe = self.recipe
        manifest = Manifest(
            name=recipe.name,
            version="0",
            architecture=self.network.architecture,
            image=recipe.image,
            search=recipe.search,
            recipe=recipe.model_dump(mode="json"),
            data=self.data.about(),
            history=history or [],
            versions=versions(),
            source_commit=source_commit(),
        )
        return Checkpoint(self.network, self.data.vocabulary, manifest)

    def dev_scores(self, features: Features) -> Scores:
        """Caption the dev images the way the service does, and score the captions."""
        captioner = Captioner(self.unpublished(), device=str(self.device))
        said = [
            candidates[0].text
            for features_BRD in features.dev()
            for candidates in captioner.caption_features(features_BRD)
        ]
        examples = self.data.dev.examples
        candidates = {item.image: text for item, text in zip(examples, said, strict=True)}
        return score(candidates, {item.image: item.captions for item in examples})


class Training:
    """A stage that takes steps: its rates, its source of features, its epochs."""

    def __init__(self, job: Job, index: int) -> None:
        self.job, self.index = job, index
        self.stage: Stage = job.recipe.stages[index]
        groups = self._trainable(job.network)
        self.rates = [group["lr"] for group in groups]
        self.optimiser = torch.optim.AdamW(groups, weight_decay=self.stage.weight_decay)
        source = AugmentedFeatures if self.stage.unfrozen_blocks else CachedFeatures
        self.features: Features = source(job.data, job.network.encoder)

    def train(self, progress: Progress) -> None:
        """Go through the epochs that are left."""
        if progress.optimiser:
            self.optimiser.load_state_dict(progress.optimiser)
        for epoch in range(progress.epoch, self.stage.epochs):
            started = time.monotonic()
            loss = self._train_epoch(epoch)
            scores = self.job.dev_scores(self.features)
            row = self._row(epoch, loss, scores, time.monotonic() - started)
            self._keep(progress, row, scores)

    def _trainable(self, network: Network) -> list[dict[str, Any]]:
        network.requires_grad_(requires_grad=False)
        network.decoder.requires_grad_(requires_grad=True)
        decoder = list(network.decoder.parameters())
        groups: list[dict[str, Any]] = [{"params": decoder, "lr": self.stage.learning_rate}]
        if self.stage.unfrozen_blocks:
            blocks = network.encoder.blocks[-self.stage.unfrozen_blocks :]
            parts = nn.ModuleList([blocks, network.encoder.head])
            parts.requires_grad_(requires_grad=True)
            encoder = list(parts.parameters())
            groups.append({"params": encoder, "lr": self.stage.encoder_learning_rate})
        return groups

    def _train_epoch(self, epoch: int) -> float:
        """Train one epoch and return the mean loss per step, in nats."""
        seed = (self.job.recipe.seed * 1009 + self.index) * 1009 + epoch
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        captions, per_image = self.job.data.captions, self.job.recipe.captions_per_image
        steps = captions.steps(self.stage.batch_images)
        batches = captions.batches(self.stage.batch_images, per_image, generator)
        self.job.network.train()
        self.job.network.encoder.eval()  # batch-norm statistics stay those of ImageNet
        losses = []
        title = f"stage {self.index + 1} epoch {epoch + 1}"
        for step, (indices_B, words_BKT) in enumerate(
            tqdm(batches, title, total=steps, unit="step")
        ):
            self._set_rates(epoch * steps + step, self.stage.epochs * steps)
            features_BRD = self.features.train(indices_B, generator)
            losses.append(self._train_step(features_BRD, words_BKT.to(self.job.device)))
        return sum(losses) / len(losses)

    def _train_step(self, features_BRD: Tensor, words_BKT: Tensor) -> float:
        logits_BKTV, _ = self.job.network.decoder(features_BRD, words_BKT[..., :-1])
        loss = F.cross_entropy(
            logits_BKTV.flatten(0, 2),
            targets(words_BKT).flatten(),
            ignore_index=PAD,
            label_smoothing=self.stage.label_smoothing,
        )
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.job.network.parameters(), self.stage.max_gradient_norm)
        self.optimiser.step()
        return loss.item()

    def _set_rates(self, step: int, steps: int) -> None:
        share = rate_share(step, steps, self.stage.warmup_steps)
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * share

    def _row(self, epoch: int, loss: float, scores: Scores, seconds: float) -> dict[str, Any]:
        return {
            "stage": self.index,
            "kind": self.stage.kind,
            "epoch": epoch,
            "train_loss": round(loss, 4),
            "dev_cider": round(scores.cider.value, 4),
            "dev_bleu_4": round(scores.bleu_4.value, 4),
            "dev_distinct_captions": scores.habits.distinct_captions,
            "seconds": round(seconds, 1),
        }

    def _keep(self, progress: Progress, row: dict[str, Any], scores: Scores) -> None:
        """Write down the epoch: best checkpoint first, state last, so that a kill loses nothing."""
        progress.history.append(row)
        progress.epoch = row["epoch"] + 1
        progress.optimiser = self.optimiser.state_dict()
        if scores.cider.value > progress.best_cider:
            progress.best_cider = scores.cider.value
            self.job.run.replace_best(self.job.unpublished(progress.history))
        self.job.run.save(self.job.network, progress)
        tqdm.write(json.dumps(row))
        if scores.habits.distinct_captions * 100 < scores.images * FEW_DISTINCT_PERCENT:
            tqdm.write(f"warning: only {scores.habits.distinct_captions} different dev captions")


def rate_share(step: int, steps: int, warmup_steps: int) -> float:
    """Return the share of the peak rate at a step: a linear warm-up, then half a cosine to zero."""
    warm = min(1.0, (step + 1) / (warmup_steps + 1))
    return warm * 0.5 * (1 + math.cos(math.pi * step / steps))
