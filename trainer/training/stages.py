"""The stages of a run: rates, epochs, steps, guard rails; and the stage that only averages.

B images of a step, K captions of an image, T steps, R regions, D feature width
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from app.captioner.model.network import Encoder, Network
from app.captioner.vocabulary import PAD
from trainer.errors import TrainerError
from trainer.training.averaging import MovingAverage, mean
from trainer.training.batches import Captions, targets
from trainer.training.context import TrainingContext, epochs
from trainer.training.features import (
    AugmentedFeatures,
    CachedFeatures,
    FeatureSource,
    NoFeatures,
)
from trainer.training.objectives import objective
from trainer.training.recipe import Stage
from trainer.training.run_directory import BEST, Progress
from trainer.training.training_data import TrainingData

_Item = TypeVar("_Item")

# Dropout and samples differ from rank to rank. Torch's generator on the CPU takes 32 bits of a
# seed: a large odd number keeps ranks and epochs apart in them.
RANK_SEEDS = 0x9E3779B1


def run_stage(context: TrainingContext, progress: Progress) -> None:
    """Do what is left of the stage at work, and move on to the next."""
    stage = context.recipe.stages[progress.stage]
    if stage.kind == "average":
        _try_average(context, stage, progress)
    else:
        StageTrainer(context, stage, progress).train()
    progress.next_stage()


class StageTrainer:
    """A stage that takes steps: its rates, its source of features, its epochs."""

    def __init__(self, context: TrainingContext, stage: Stage, progress: Progress) -> None:
        self.context, self.stage, self.progress = context, stage, progress
        starts_from_best = stage.kind == "self_critical" and stage.starts_from == "best"
        if starts_from_best and progress.epoch == 0 and progress.best_row >= 0:
            context.network.load_state_dict(context.best_weights())
        self._set_dropout(context.network)
        self.groups = self._trainable(context.network)
        self.rates = [group["lr"] for group in self.groups]
        self.optimiser = self._new_optimiser()
        self.average = MovingAverage(context.network, stage.ema_decay) if stage.ema_decay else None
        self.captions = _captions(context, stage)
        with context.ranks.leader_first():
            self.features: FeatureSource = _source(stage)(context.data, context.network.encoder)
        self.objective = objective(context.recipe, stage, context.data)
        self._resume()

    def train(self) -> None:
        """Go through the epochs that are left."""
        for epoch in range(self.progress.epoch, self.stage.epochs):
            if self._is_out_of_patience():
                break
            started = time.monotonic()
            row: dict[str, Any] = {
                "stage": self.progress.stage,
                "kind": self.stage.kind,
                "epoch": epoch,
                **self.context.compute_settings,
            }
            row |= self._train_epoch(epoch)
            with self._on_show():
                scores = self.context.dev_scores(self.features)
                row["seconds"] = round(time.monotonic() - started, 1)
                row |= self._guard(scores.cider)
                self.context.record_epoch(self.progress, row, scores)
            self._close_epoch(epoch, reverted="reverted" in row)
        if self.average:
            self.average.apply()

    def _is_out_of_patience(self) -> bool:
        """Early stopping (Prechelt 1998): say whether too many epochs brought nothing better."""
        history = self.progress.history
        mine = [row for row, each in enumerate(history) if each["stage"] == self.progress.stage]
        since_best = [row for row in mine if row > self.progress.best_row]
        return 0 < self.stage.patience <= len(since_best)

    def _set_dropout(self, network: Network) -> None:
        asked, usual = self.stage.dropout, network.architecture.dropout
        for part in network.decoder.modules():
            if isinstance(part, nn.Dropout):
                part.p = usual if asked is None else asked

    def _trainable(self, network: Network) -> list[dict[str, Any]]:
        network.requires_grad_(requires_grad=False)
        network.zero_grad()  # what an earlier stage left would weigh in the norm that is clipped
        network.decoder.requires_grad_(requires_grad=True)
        decoder = list(network.decoder.parameters())
        groups: list[dict[str, Any]] = [{"params": decoder, "lr": self.stage.learning_rate}]
        if self.stage.unfrozen_blocks:
            blocks = network.encoder.blocks[-self.stage.unfrozen_blocks :]
            parts = nn.ModuleList([blocks, network.encoder.head])
            if self.stage.class_weight and network.encoder.classes is not None:
                parts.append(network.encoder.classes)
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
            self.average.load_state_dict(self.progress.moving_average)

    def _train_epoch(self, epoch: int) -> dict[str, float]:
        """Train one epoch and return the mean figures of a step, the loss in nats."""
        ranks = self.context.ranks
        seed = (self.context.recipe.seed * 1009 + self.progress.stage) * 1009 + epoch
        torch.manual_seed(seed + ranks.rank * RANK_SEEDS)
        generator = torch.Generator().manual_seed(seed)
        captions, per_image = self.captions, self.context.recipe.captions_per_image
        steps = captions.steps(self.stage.batch_images)
        batches = captions.batches(self.stage.batch_images, per_image, generator)
        self.context.network.train()
        self.context.network.encoder.eval()  # batch-norm statistics stay those of ImageNet
        metrics = []
        title = f"stage {self.progress.stage + 1} epoch {epoch + 1}"
        begun = (
            (indices_B, words_BKT, self.features.begin(indices_B, generator, ranks.share))
            for indices_B, words_BKT in batches
        )
        shown = tqdm(prefetched(begun), title, total=steps, unit="step", disable=not ranks.leads)
        for step, batch in enumerate(shown):
            self._set_rates(epoch * steps + step, self.stage.epochs * steps)
            metrics.append(self._train_step(*batch))
        totals = ranks.total(_sums(metrics))
        if not all(map(math.isfinite, totals.values())):
            raise TrainerError(
                f"the loss is not a number in stage {self.progress.stage + 1}, epoch {epoch + 1}: "
                f"lower stages.{self.progress.stage}.learning_rate (now "
                f"{self.stage.learning_rate:g}); {BEST}/ stays as it was"
            )
        return {f"train_{name}": round(total / steps, 4) for name, total in totals.items()}

    def _train_step(
        self, indices_B: Tensor, words_BKT: Tensor, features: Callable[[], Tensor]
    ) -> dict[str, Tensor]:
        network, weight = self.context.network, self._weight(words_BKT)
        self.optimiser.zero_grad()
        metrics = self._learn(indices_B, words_BKT, features, weight) if weight else {}
        self.context.ranks.add_gradients(network.parameters())
        nn.utils.clip_grad_norm_(network.parameters(), self.stage.max_gradient_norm)
        self.optimiser.step()
        if self.average:
            self.average.update()
        return metrics

    def _learn(
        self, indices_B: Tensor, words_BKT: Tensor, features: Callable[[], Tensor], weight: float
    ) -> dict[str, Tensor]:
        """Take the gradients of this rank's share, and give its part of the figures."""
        mine, decoder = self.context.ranks.share, self.context.network.decoder
        with self.context.autocast():
            words_BKT, features_BRD = words_BKT[mine].to(self.context.device), features()
            metrics = self.objective(decoder, features_BRD, indices_B[mine], words_BKT)
            if self.stage.class_weight:
                metrics |= self._with_classes(metrics["loss"], features_BRD, indices_B[mine])
        (metrics["loss"] * weight).backward()  # type: ignore[no-untyped-call]
        return {name: figure.detach() * weight for name, figure in metrics.items()}

    def _with_classes(
        self, loss: Tensor, features_BRD: Tensor, indices_B: Tensor
    ) -> dict[str, Tensor]:
        """Add what the encoder forgets of the classes it once knew."""
        known_BC = torch.from_numpy(self.context.class_probabilities[indices_B.numpy()])
        logits_BC = self.context.network.encoder.class_logits(features_BRD)
        forgotten = F.cross_entropy(logits_BC, known_BC.to(logits_BC.device, logits_BC.dtype))
        return {"loss": loss + self.stage.class_weight * forgotten, "class_loss": forgotten}

    def _weight(self, words_BKT: Tensor) -> float:
        """Say how much this rank's mean weighs in that of the batch: 1 on a single rank.

        Cross-entropy is a mean over the words taught, so it is their share, and the sum over ranks
        is exact. Self-critical samples differ in length by chance: there it is the share of
        images, and a rank that drew longer captions counts no more for it.
        """
        taught_B = (targets(words_BKT) != PAD).sum((1, 2))
        if self.stage.kind == "self_critical":
            taught_B = torch.ones_like(taught_B)
        return (taught_B[self.context.ranks.share].sum() / taught_B.sum()).item()

    def _set_rates(self, step: int, steps: int) -> None:
        share = learning_rate_scale(
            step, steps, self.stage.warmup_steps, schedule=self.stage.schedule
        )
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * share * self.progress.rate_factor

    def _on_show(self) -> AbstractContextManager[None]:
        return self.average.applied() if self.average else nullcontext()

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
        self.progress.moving_average = self.average.state_dict() if self.average else None
        self.context.save(self.progress)

    def _go_back(self) -> None:
        """Take up the best weights again, at half the rate, without the optimiser's memory."""
        self.context.network.load_state_dict(self.context.best_weights())
        self.progress.rate_factor /= 2
        self.optimiser = self._new_optimiser()
        if self.average:
            self.average.reset()


def _captions(context: TrainingContext, stage: Stage) -> Captions:
    if stage.kind != "language":
        return context.data.captions
    if context.data.sentences is None:
        raise TrainerError("a stage of the kind language reads sentences: give --sentences FILE")
    return context.data.sentences


def _source(stage: Stage) -> Callable[[TrainingData, Encoder], FeatureSource]:
    if stage.kind == "language":
        return NoFeatures
    return AugmentedFeatures if stage.unfrozen_blocks else CachedFeatures


def learning_rate_scale(
    step: int, steps: int, warmup_steps: int, *, schedule: str = "cosine"
) -> float:
    """Return the share of the peak rate at a step: a linear warm-up, then half a cosine to zero.

    The warm-up takes a tenth of the steps at most: of sixty steps a hundred would leave none.
    """
    warm = min(1.0, (step + 1) / (min(warmup_steps, steps // 10) + 1))
    falling = 0.5 * (1 + math.cos(math.pi * step / steps))
    return warm * (falling if schedule == "cosine" else 1.0)


def prefetched(items: Iterable[_Item]) -> Iterator[_Item]:
    """Give items in their order, each when the next has begun."""
    begun: deque[_Item] = deque()
    for item in items:
        begun.append(item)
        if len(begun) > 1:
            yield begun.popleft()
    yield from begun


def _sums(metrics: list[dict[str, Tensor]]) -> dict[str, float]:
    names = dict.fromkeys(name for row in metrics for name in row)
    return {name: sum(row[name].item() for row in metrics if name in row) for name in names}


def _try_average(context: TrainingContext, stage: Stage, progress: Progress) -> None:
    """Let the network be the mean of earlier epochs, and keep that only if dev improves."""
    if progress.epoch:
        return
    started = time.monotonic()
    rows = epochs(progress, stage.averaged_epochs, by=stage.averaged_by)
    found = {row: weights for row in rows if (weights := context.weights(row)) is not None}
    if len(found) < 2:
        raise TrainerError(f"average expects weights of two epochs or more, found {len(found)}")
    before = {name: tensor.clone() for name, tensor in context.network.state_dict().items()}
    context.network.load_state_dict(mean(list(found.values())))
    scores = context.dev_scores(AugmentedFeatures(context.data, context.network.encoder))
    row: dict[str, Any] = {"stage": progress.stage, "kind": stage.kind, "epoch": 0}
    row["averaged"] = sorted(found)
    row["seconds"] = round(time.monotonic() - started, 1)
    row["kept"] = scores.cider > progress.best_cider
    if not context.record_epoch(progress, row, scores):
        context.network.load_state_dict(before)
    progress.epoch, progress.optimiser = 1, None
    context.save(progress)
