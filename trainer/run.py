"""The run directory: what a run leaves on disk, and how it goes on from there.

recipe.json    what was asked for, changes applied
state.pt       everything needed to go on after the last finished epoch
best/          checkpoint of the epoch with the highest free-running dev CIDEr
log.jsonl      one line per epoch
tensorboard/   the same as curves
"""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from app.captioner import checkpoint
from app.captioner.checkpoint import Checkpoint
from app.captioner.network import Network
from trainer.errors import TrainerError
from trainer.recipe import Recipe

STATE = "state.pt"
BEST = "best"
LOG = "log.jsonl"
CURVES = ("train_loss", "dev_cider", "dev_bleu_4")


@dataclass
class Progress:
    """How far a run is: the only thing that changes besides the weights."""

    stage: int = 0
    epoch: int = 0
    best_cider: float = -1.0
    optimiser: dict[str, Any] | None = None
    history: list[dict[str, Any]] = field(default_factory=list)


class Run:
    """A run directory.

    Args:
        path: new, or holding a run of the same recipe.
        recipe: what is asked for.

    Raises:
        TrainerError: the directory holds a run of another recipe.
    """

    def __init__(self, path: Path, recipe: Recipe) -> None:
        self.path = path
        self._claim(recipe)
        self._writer = SummaryWriter(path / "tensorboard")

    def close(self) -> None:
        """Close the curves."""
        self._writer.close()

    def resume(self, network: Network) -> Progress:
        """Load the weights of the last finished epoch, if there is one."""
        path = self.path / STATE
        if not path.exists():
            return Progress()
        state = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(state["network"])
        return Progress(**state["progress"])

    def replace_best(self, unpublished: Checkpoint) -> None:
        """Put a checkpoint in the place of the best one."""
        fresh, best = self.path / "best.unfinished", self.path / BEST
        shutil.rmtree(fresh, ignore_errors=True)
        checkpoint.save(fresh, unpublished)
        shutil.rmtree(best, ignore_errors=True)
        fresh.rename(best)

    def save(self, network: Network, progress: Progress) -> None:
        """Write down an epoch: state, log and curves."""
        unfinished = self.path / "state.unfinished"
        torch.save({"network": network.state_dict(), "progress": vars(progress)}, unfinished)
        unfinished.rename(self.path / STATE)
        lines = (json.dumps(row) + "\n" for row in progress.history)
        (self.path / LOG).write_text("".join(lines))
        for name in CURVES:
            self._writer.add_scalar(name, progress.history[-1][name], len(progress.history))

    def _claim(self, recipe: Recipe) -> None:
        """Make the directory, or make sure that it holds a run of the same recipe."""
        path = self.path / "recipe.json"
        asked = recipe.model_dump(mode="json")
        if path.exists():
            if json.loads(path.read_text()) != asked:
                raise TrainerError(
                    f"{self.path} holds a run of another recipe: name another directory"
                )
            return
        self.path.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asked, indent=2) + "\n")
