"""What all stages of a run share: recipe, network, data, directory, and how an epoch is judged."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from tqdm import tqdm

from app.captioner.architecture import attention_rows
from app.captioner.captions import to_captions
from app.captioner.engines.torch_engine import TorchEngine
from app.captioner.manifest import Manifest
from app.captioner.model.network import Network
from app.captioner.model.torch_checkpoint import TorchCheckpoint
from app.captioner.search import always_waiting
from app.captioner.vocabulary import PAD
from trainer.errors import TrainerError
from trainer.scoring.scores import Scores, score
from trainer.training.batches import targets
from trainer.training.distributed import Ranks
from trainer.training.features import FeatureSource
from trainer.training.provenance import source_commit, versions
from trainer.training.recipe import Recipe, Stage
from trainer.training.run_directory import BEST, Progress, RunDirectory
from trainer.training.training_data import TrainingData

PRECISIONS = ("float32", "bfloat16")
FEW_DISTINCT_PERCENT = 10
SAMPLES = 3


class DevScores(NamedTuple):
    """What captions of the dev images are worth.

    Attributes:
        sets: the scores of every data directory, by its name.
        weights: of each in ``cider``.
        loss: cross-entropy of the references, mean over their words, in nats.
        samples: some images and what was said of them.
    """

    sets: dict[str, Scores]
    weights: Sequence[float]
    loss: float
    samples: tuple[tuple[str, str], ...]

    @property
    def cider(self) -> float:
        """Give the weighted mean of the sets' CIDEr: epochs are chosen by it."""
        values = (scores.cider.value for scores in self.sets.values())
        total = sum(w * value for w, value in zip(self.weights, values, strict=True))
        return total / sum(self.weights)

    @property
    def first(self) -> Scores:
        """Give the scores of the first directory."""
        return next(iter(self.sets.values()))


@dataclass(frozen=True)
class TrainingContext:
    """What all stages of a run share.

    Every rank has one, and judges alike; the leader alone touches the run directory.

    Attributes:
        recipe: what is trained.
        network: on the device of its rank.
        data: what is read.
        run_directory: the leader's to write.
        ranks: the processes of the run.
        precision: a name of `PRECISIONS`, of the arithmetic of a step.
        class_probabilities: float16 ``(N, 1000)``, what the encoder thought of the training images
            before it was trained here; empty where no stage asks for it.
    """

    recipe: Recipe
    network: Network
    data: TrainingData
    run_directory: RunDirectory
    ranks: Ranks
    precision: str
    class_probabilities: npt.NDArray[np.float16]

    @property
    def device(self) -> torch.device:
        """Say where the network is."""
        return self.network.encoder.mean.device

    @property
    def compute_settings(self) -> dict[str, Any]:
        """Say for the history how an epoch was computed, so that its figures can be traced."""
        several = {"ranks": self.ranks.count} if self.ranks.count > 1 else {}
        return {"precision": self.precision, **several}

    def autocast(self) -> torch.autocast:
        """Compute in the precision asked for, for a while; weights stay in float32.

        Reference: Kalamkar et al. 2019, "A study of BFLOAT16 for deep learning training"; its
        exponent is that of float32, so that the loss needs no scaling.
        """
        enabled = self.precision == "bfloat16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def dev_scores(self, features: FeatureSource) -> DevScores:
        """Caption the dev images the way the service does, and score the captions."""
        return self.ranks.once(self._dev_scores, features)

    def best_weights(self) -> dict[str, torch.Tensor]:
        """Give the state dict of the best checkpoint so far."""
        return self.ranks.once(self.run_directory.best_weights)

    def weights(self, row: int) -> dict[str, torch.Tensor] | None:
        """Give the weights of an epoch, if they were kept."""
        return self.ranks.once(self.run_directory.weights, row)

    def _dev_scores(self, features: FeatureSource) -> DevScores:
        engine = TorchEngine(self.network, self.recipe.search)
        captions: list[str] = []
        losses, words = 0.0, 0
        for features_BRD in features.dev():
            targets_BKT = self.data.dev_captions.padded(
                len(captions), len(captions) + len(features_BRD)
            )
            loss, count = self._dev_loss(features_BRD, targets_BKT.to(self.device))
            losses, words = losses + loss, words + count
            beams = engine.search(features_BRD, always_waiting)
            rows = attention_rows(self.network.architecture)
            found = to_captions(beams, self.data.vocabulary, rows=rows)
            if not all(found):
                raise TrainerError(
                    "the network says nothing any more, its weights are not numbers: lower the "
                    f"learning_rate of the stage; {BEST}/ stays as it was"
                )
            captions += [each[0].text for each in found]
        remaining = iter(captions)
        sets = {
            name: score(
                dict(zip(refs, remaining, strict=False)),  # as many as there are
                refs,
                tokeniser_name=self.data.vocabulary.tokeniser,
            )
            for name, refs in self._dev_references().items()
        }
        names = [example.image for example in self.data.dev.examples]
        samples = tuple(zip(names, captions, strict=True))[:: max(1, len(names) // SAMPLES)]
        weights = self.recipe.dev_weights or (1.0,) * len(sets)
        return DevScores(sets, weights, losses / max(words, 1), samples[:SAMPLES])

    @torch.inference_mode()
    def _dev_loss(self, features_BRD: torch.Tensor, words_BKT: torch.Tensor) -> tuple[float, int]:
        """Give the sum of the cross-entropy of references, and how many words it is over."""
        logits_BKTV, _ = self.network.eval().decoder(features_BRD, words_BKT[..., :-1])
        expected = targets(words_BKT).flatten()
        loss = F.cross_entropy(
            logits_BKTV.flatten(0, 2), expected, ignore_index=PAD, reduction="sum"
        )
        return loss.item(), int((expected != PAD).sum())

    def _dev_references(self) -> dict[str, dict[str, tuple[str, ...]]]:
        """Give the references of every dev set, in the order of ``data.dev``."""
        return {
            name: {example.image: example.captions for example in split.examples}
            for name, split in self.data.dev_sets.items()
        }

    def record_epoch(self, progress: Progress, row: dict[str, Any], scores: DevScores) -> bool:
        """Add an epoch to the history, keep its weights where needed; tell if it is the best."""
        index = len(progress.history)
        progress.history.append({**row, **_dev_metrics(scores)})
        if self.ranks.leads:
            self._keep_weights(progress, index)
            self._tell_epoch(progress, scores)
        if (scores.cider, -scores.loss) <= (progress.best_cider, -progress.best_loss):
            return False
        progress.best_cider, progress.best_loss = scores.cider, scores.loss
        progress.best_row = index
        if self.ranks.leads:
            self.run_directory.propose_best(self._checkpoint_now(progress.history))
        return True

    def _tell_epoch(self, progress: Progress, scores: DevScores) -> None:
        """Tell a person how far the run is, and what the network says now."""
        row, stages = progress.history[-1], self.recipe.stages
        stage = stages[min(row["stage"], len(stages) - 1)]
        trained = "".join(
            f"{title} {row[name]:.3f}, "
            for name, title in (("train_loss", "loss"), ("train_reward", "reward"))
            if name in row
        )
        best = "the best so far" if scores.cider > progress.best_cider else "best so far "
        best += "" if scores.cider > progress.best_cider else f"{max(progress.best_cider, 0):.3f}"
        tqdm.write(
            f"stage {row['stage'] + 1} of {len(stages)} ({row['kind']}), epoch {row['epoch'] + 1} "
            f"of {stage.epochs}: {trained}dev loss {scores.loss:.3f}, dev CIDEr "
            f"{scores.cider:.3f} ({best}){_time_left(row, stage)}"
        )
        for image, text in scores.samples:
            tqdm.write(f"    {image}: {text}")
        distinct, images = scores.first.caption_statistics.distinct_captions, scores.first.images
        if images > 1 and (distinct == 1 or distinct * 100 < images * FEW_DISTINCT_PERCENT):
            tqdm.write(f"warning: only {distinct} different captions of {images} dev images")

    def save(self, progress: Progress) -> None:
        """Write the epoch down; from here on it has happened."""
        if self.ranks.leads:
            self.run_directory.save(self.network, progress)
            self.run_directory.prune_weights(keep=self._rows_to_keep(progress))

    def _keep_weights(self, progress: Progress, index: int) -> None:
        if index in self._rows_to_keep(progress):
            self.run_directory.save_weights(index, self.network)

    def _rows_to_keep(self, progress: Progress) -> set[int]:
        """Say which epochs a later stage may average."""
        stages = self.recipe.stages
        done = progress.epoch >= stages[progress.stage].epochs
        ahead = stages[progress.stage + done :]
        return {
            row
            for stage in ahead
            if stage.kind == "average"
            for row in epochs(progress, stage.averaged_epochs, by=stage.averaged_by)
        }

    def _checkpoint_now(self, history: list[dict[str, Any]]) -> TorchCheckpoint:
        recipe = self.recipe
        manifest = Manifest(
            name=recipe.name,
            version="0",
            architecture=self.network.architecture,
            image=recipe.image,
            search=recipe.search,
            recipe=recipe.model_dump(mode="json"),
            data=self.data.about,
            history=history,
            versions=versions(),
            source_commit=source_commit(),
        )
        return TorchCheckpoint(self.network, self.data.vocabulary, manifest)


def _time_left(row: dict[str, Any], stage: Stage) -> str:
    left = stage.epochs - row["epoch"] - 1
    if not left or "seconds" not in row:
        return ""
    return f", about {max(1, round(left * row['seconds'] / 60))} min left in this stage"


def epochs(progress: Progress, count: int, *, by: str) -> list[int]:
    """Choose rows of the history to average, in order, see `trainer.training.recipe.Stage`."""
    history = progress.history
    trained = [
        index
        for index, row in enumerate(history)
        if row["kind"] != "average" and not row.get("reverted")
    ]
    if by == "best":
        trained.sort(key=lambda index: history[index]["dev_cider"])
    if by == "stages":
        ends = {(history[index]["stage"], history[index]["kind"]): index for index in trained}
        trained = list(ends.values())
    return sorted(trained[-count:]) if count else []


def _dev_metrics(scores: DevScores) -> dict[str, Any]:
    statistics = scores.first.caption_statistics
    ciders = {name: round(found.cider.value, 4) for name, found in scores.sets.items()}
    return {
        "dev_loss": round(scores.loss, 4),
        "dev_cider": round(scores.cider, 4),
        **({"dev_cider_by_data": ciders} if len(ciders) > 1 else {}),
        "dev_bleu_4": round(scores.first.bleu_4.value, 4),
        "dev_distinct_captions": statistics.distinct_captions,
        "dev_bad_endings_percent": round(statistics.bad_endings_percent, 2),
    }
