"""The stages of a run: rates, epochs, steps, guard rails; and the stage that only averages.

B images of a step, K captions of an image, T steps, R regions, D feature width
"""

import math
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from app.captioner.network import Network
from trainer.averaging import MovingAverage, mean
from trainer.errors import TrainerError
from trainer.inputs import AugmentedFeatures, CachedFeatures, Features
from trainer.job import Job, epochs
from trainer.objectives import objective
from trainer.recipe import Stage
from trainer.run import Progress


def run_stage(job: Job, progress: Progress) -> None:
    """Do what is left of the stage at work, and move on to the next."""
    stage = job.recipe.stages[progress.stage]
    if stage.kind == "average":
        _try_average(job, stage, progress)
    else:
        Training(job, stage, progress).train()
    progress.next_stage()


class Training:
    """A stage that takes steps: its rates, its source of features, its epochs."""

    def __init__(self, job: Job, stage: Stage, progress: Progress) -> None:
        self.job, self.stage, self.progress = job, stage, progress
        if stage.kind == "self_critical" and progress.epoch == 0 and progress.best_row >= 0:
            job.network.load_state_dict(job.run.best_weights())
        self.groups = self._trainable(job.network)
        self.rates = [group["lr"] for group in self.groups]
        self.optimiser = self._new_optimiser()
        self.average = MovingAverage(job.network, stage.ema_decay) if stage.ema_decay else None
        source = AugmentedFeatures if stage.unfrozen_blocks else CachedFeatures
        self.features: Features = source(job.data, job.network.encoder)
        self.objective = objective(job.recipe, stage, job.data)
        self._resume()

    def train(self) -> None:
        """Go through the epochs that are left."""
        for epoch in range(self.progress.epoch, self.stage.epochs):
            started = time.monotonic()
            row: dict[str, Any] = {
                "stage": self.progress.stage,
                "kind": self.stage.kind,
                "epoch": epoch,
            }
            row |= self._train_epoch(epoch)
            with self._on_show():
                scores = self.job.dev_scores(self.features)
                row["seconds"] = round(time.monotonic() - started, 1)
                row |= self._guard(scores.cider.value)
                self.job.judge(self.progress, row, scores)
            self._close_epoch(epoch, reverted="reverted" in row)
        if self.average:
            self.average.settle()

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

    def _new_optimiser(self) -> torch.optim.Optimizer:
        groups = [dict(group) for group in self.groups]
        return torch.optim.AdamW(groups, weight_decay=self.stage.weight_decay)

    def _resume(self) -> None:
        if self.progress.optimiser:
            self.optimiser.load_state_dict(self.progress.optimiser)
        if self.average and self.progress.moving_average:
            self.average.load(self.progress.moving_average)

    def _train_epoch(self, epoch: int) -> dict[str, float]:
        """Train one epoch and return the mean figures of a step, the loss in nats."""
        seed = (self.job.recipe.seed * 1009 + self.progress.stage) * 1009 + epoch
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        captions, per_image = self.job.data.captions, self.job.recipe.captions_per_image
        steps = captions.steps(self.stage.batch_images)
        batches = captions.batches(self.stage.batch_images, per_image, generator)
        self.job.network.train()
        self.job.network.encoder.eval()  # batch-norm statistics stay those of ImageNet
        figures = []
        title = f"stage {self.progress.stage + 1} epoch {epoch + 1}"
        for step, (indices_B, words_BKT) in enumerate(
            tqdm(batches, title, total=steps, unit="step")
        ):
            self._set_rates(epoch * steps + step, self.stage.epochs * steps)
            features_BRD = self.features.train(indices_B, generator)
            figures.append(self._train_step(features_BRD, indices_B, words_BKT))
        return _means(figures)

    def _train_step(
        self, features_BRD: Tensor, indices_B: Tensor, words_BKT: Tensor
    ) -> dict[str, Tensor]:
        network = self.job.network
        words_BKT = words_BKT.to(self.job.device)
        figures = self.objective(network.decoder, features_BRD, indices_B, words_BKT)
        self.optimiser.zero_grad()
        figures["loss"].backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), self.stage.max_gradient_norm)
        self.optimiser.step()
        if self.average:
            self.average.follow()
        return {name: figure.detach() for name, figure in figures.items()}

    def _set_rates(self, step: int, steps: int) -> None:
        share = rate_share(step, steps, self.stage.warmup_steps, schedule=self.stage.schedule)
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * share * self.progress.rate_factor

    def _on_show(self) -> AbstractContextManager[None]:
        return self.average.in_place() if self.average else nullcontext()

    def _guard(self, cider: float) -> dict[str, bool]:
        """Self-critical training can run away from language; say when it did."""
        guarded = self.stage.kind == "self_critical"
        fell = cider < self.progress.best_cider - self.stage.guard_margin
        return {"reverted": True} if guarded and fell else {}

    def _close_epoch(self, epoch: int, *, reverted: bool) -> None:
        if reverted:
            self._go_back()
        self.progress.epoch = epoch + 1
        self.progress.optimiser = self.optimiser.state_dict()
        self.progress.moving_average = self.average.state() if self.average else None
        self.job.save(self.progress)

    def _go_back(self) -> None:
        """Take up the best weights again, at half the rate, without the optimiser's memory."""
        self.job.network.load_state_dict(self.job.run.best_weights())
        self.progress.rate_factor /= 2
        self.optimiser = self._new_optimiser()
        if self.average:
            self.average.restart()


def rate_share(step: int, steps: int, warmup_steps: int, *, schedule: str = "cosine") -> float:
    """Return the share of the peak rate at a step: a linear warm-up, then half a cosine to zero."""
    warm = min(1.0, (step + 1) / (warmup_steps + 1))
    falling = 0.5 * (1 + math.cos(math.pi * step / steps))
    return warm * (falling if schedule == "cosine" else 1.0)


def _means(figures: list[dict[str, Tensor]]) -> dict[str, float]:
    return {
        f"train_{name}": round(sum(row[name].item() for row in figures) / len(figures), 4)
        for name in figures[0]
    }


def _try_average(job: Job, stage: Stage, progress: Progress) -> None:
    """Let the network be the mean of earlier epochs, and keep that only if dev improves."""
    if progress.epoch:
        return
    started = time.monotonic()
    rows = epochs(progress, stage.averaged_epochs, by=stage.averaged_by)
    found = {row: weights for row in rows if (weights := job.run.weights(row)) is not None}
    if len(found) < 2:
        raise TrainerError(f"average expects weights of two epochs or more, found {len(found)}")
    before = {name: tensor.clone() for name, tensor in job.network.state_dict().items()}
    job.network.load_state_dict(mean(list(found.values())))
    scores = job.dev_scores(AugmentedFeatures(job.data, job.network.encoder))
    row: dict[str, Any] = {"stage": progress.stage, "kind": stage.kind, "epoch": 0}
    row["averaged"] = sorted(found)
    row["seconds"] = round(time.monotonic() - started, 1)
    row["kept"] = scores.cider.value > progress.best_cider
    if not job.judge(progress, row, scores):
        job.network.load_state_dict(before)
    progress.epoch, progress.optimiser = 1, None
    job.save(progress)
