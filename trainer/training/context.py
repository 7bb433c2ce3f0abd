"""What all stages of a run share: recipe, network, data, directory, and how an epoch is judged."""

import json
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from app.captioner.captions import to_captions
from app.captioner.engines.torch_engine import TorchEngine
from app.captioner.manifest import Manifest
from app.captioner.model.network import Network
from app.captioner.model.torch_checkpoint import TorchCheckpoint
from app.captioner.search import always_waiting
from trainer.scoring.scores import Scores, score
from trainer.training.distributed import Ranks
from trainer.training.features import FeatureSource
from trainer.training.provenance import source_commit, versions
from trainer.training.recipe import Recipe
from trainer.training.run_directory import Progress, RunDirectory
from trainer.training.training_data import TrainingData

PRECISIONS = ("float32", "bfloat16")
FEW_DISTINCT_PERCENT = 10


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
    """

    recipe: Recipe
    network: Network
    data: TrainingData
    run_directory: RunDirectory
    ranks: Ranks
    precision: str

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

    def dev_scores(self, features: FeatureSource) -> Scores:
        """Caption the dev images the way the service does, and score the captions."""
        return self.ranks.once(self._dev_scores, features)

    def best_weights(self) -> dict[str, torch.Tensor]:
        """Give the state dict of the best checkpoint so far."""
        return self.ranks.once(self.run_directory.best_weights)

    def weights(self, row: int) -> dict[str, torch.Tensor] | None:
        """Give the weights of an epoch, if they were kept."""
        return self.ranks.once(self.run_directory.weights, row)

    def _dev_scores(self, features: FeatureSource) -> Scores:
        engine = TorchEngine(self.network, self.recipe.search)
        captions = [
            candidates[0].text
            for features_BRD in features.dev()
            for candidates in to_captions(
                engine.search(features_BRD, always_waiting), self.data.vocabulary
            )
        ]
        examples = self.data.dev.examples
        candidates = {item.image: text for item, text in zip(examples, captions, strict=True)}
        references = {item.image: item.captions for item in examples}
        return score(candidates, references, tokeniser_name=self.data.vocabulary.tokeniser)

    def record_epoch(self, progress: Progress, row: dict[str, Any], scores: Scores) -> bool:
        """Add an epoch to the history, keep its weights where needed; tell if it is the best."""
        index = len(progress.history)
        progress.history.append({**row, **_dev_metrics(scores)})
        if self.ranks.leads:
            self._keep_weights(progress, index)
            _log_epoch(progress.history[-1], scores)
        if scores.cider.value <= progress.best_cider:
            return False
        progress.best_cider, progress.best_row = scores.cider.value, index
        if self.ranks.leads:
            self.run_directory.propose_best(self._checkpoint_now(progress.history))
        return True

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


def _log_epoch(row: dict[str, Any], scores: Scores) -> None:
    tqdm.write(json.dumps(row))
    distinct = scores.caption_statistics.distinct_captions
    if distinct * 100 < scores.images * FEW_DISTINCT_PERCENT:
        tqdm.write(f"warning: only {distinct} different dev captions")


def _dev_metrics(scores: Scores) -> dict[str, Any]:
    return {
        "dev_cider": round(scores.cider.value, 4),
        "dev_bleu_4": round(scores.bleu_4.value, 4),
        "dev_distinct_captions": scores.caption_statistics.distinct_captions,
        "dev_bad_endings_percent": round(scores.caption_statistics.bad_endings_percent, 2),
    }
