"""The run directory: what a run leaves on disk, and how it goes on from there.

recipe.json    what was asked for, changes applied
data.json      hashes of what is trained on
state.pt       everything needed to go on after the last finished epoch
best/          checkpoint of the epoch with the highest free-running dev CIDEr
weights/       float32 weights of the epochs that a later stage may average
log.jsonl      one line per epoch
tensorboard/   the same as curves

A kill may come at any moment. Every file is written under another name and renamed, and
``state.pt`` is the only truth: an epoch counts once it is there. What was written before it is
taken up or thrown away by `RunDirectory.resume`, what comes after it is written again.
"""

import json
import math
import os
import pickle
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from app.captioner import checkpoint
from app.captioner.errors import CheckpointError
from app.captioner.model import torch_checkpoint
from app.captioner.model.network import Network
from app.captioner.model.torch_checkpoint import TorchCheckpoint
from trainer.errors import TrainerError
from trainer.training.recipe import Recipe

STATE = "state.pt"
BEST = "best"
LOG = "log.jsonl"
DATA = "data.json"
_MOST_CHANGES = 3
CURVES = (
    "train_loss",
    "train_reward",
    "dev_loss",
    "dev_cider",
    "dev_bleu_4",
    "dev_bad_endings_percent",
)


@dataclass
class Progress:
    """How far a run is: the only thing that changes besides the weights.

    Attributes:
        stage: index of the stage at work.
        epoch: how many of its epochs are done.
        best_cider: the highest on dev so far.
        best_loss: on dev, of the epoch that has it; of equal scores the lower loss wins.
        best_row: which row of the history has it.
        rate_factor: what the guard rails left of the stage's rates.
        optimiser: state dict.
        moving_average: of the weights that learn, where the stage keeps one.
        history: one row per epoch.
    """

    stage: int = 0
    epoch: int = 0
    best_cider: float = -1.0
    best_loss: float = math.inf
    best_row: int = -1
    rate_factor: float = 1.0
    optimiser: dict[str, Any] | None = None
    moving_average: dict[str, Any] | None = None
    history: list[dict[str, Any]] = field(default_factory=list)

    def next_stage(self) -> None:
        """Leave a stage behind."""
        self.stage, self.epoch, self.rate_factor = self.stage + 1, 0, 1.0
        self.optimiser = self.moving_average = None


class RunDirectory:
    """A run directory.

    Args:
        path: new, or holding a run of the same recipe; nothing is touched before `claim`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._next, self._previous = path / "best.next", path / "best.previous"
        self._writer: SummaryWriter | None = None

    def claim(self, recipe: Recipe) -> None:
        """Make the directory, or make sure that it holds a run of the same recipe.

        A run that never came to the end of an epoch leaves its directory to the next.

        Raises:
            TrainerError: the directory holds a run of another recipe.
        """
        path = self.path / "recipe.json"
        fields = recipe.model_dump(mode="json")
        if not path.exists() or not (self.path / STATE).exists():
            self.path.mkdir(parents=True, exist_ok=True)
            _write(path, json.dumps(fields, indent=2) + "\n")
            (self.path / DATA).unlink(missing_ok=True)
        elif not _same(known := json.loads(path.read_text()), recipe):
            changed = ", ".join(_changes(known, fields)[:_MOST_CHANGES])
            raise TrainerError(
                f"{self.path} holds a run of another recipe ({changed}): name another directory; "
                f"to train on from it, add --initial {self.path / BEST}"
            )

    def claim_data(self, identity: Mapping[str, str]) -> None:
        """Remember what is trained on, or make sure that it is still the same.

        Raises:
            TrainerError: it is not: ids would stand for other words, or scores for other images.
        """
        path = self.path / DATA
        if not path.exists():
            _write(path, json.dumps(identity, indent=2) + "\n")
            return
        known = json.loads(path.read_text())
        changed = [name for name, sha256 in identity.items() if known.get(name) != sha256]
        if changed:
            raise TrainerError(
                f"the data has changed since {self.path} began ({', '.join(changed)}): name "
                f"another directory; to train on from it, add --initial {self.path / BEST}"
            )

    def close(self) -> None:
        """Close the curves."""
        if self._writer:
            self._writer.close()

    def resume(self, network: Network) -> Progress:
        """Load the weights of the last finished epoch, if any, and tidy up after a kill."""
        progress, path = Progress(), self.path / STATE
        if path.exists():
            state = self._state(path)
            network.load_state_dict(state["network"])
            progress = Progress(**state["progress"])
            self._write_log(progress)
        self._settle_best(progress)
        self._writer = SummaryWriter(
            self.path / "tensorboard", purge_step=len(progress.history) + 1
        )
        return progress

    def _state(self, path: Path) -> dict[str, Any]:
        try:
            return torch.load(path, map_location="cpu", weights_only=True)  # type: ignore[no-any-return]
        except (RuntimeError, OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise TrainerError(
                f"{path} is damaged ({reason[:100]}): remove it to begin "
                f"anew, or name another directory and add --initial {self.path / BEST}"
            ) from None

    def propose_best(self, unpublished: TorchCheckpoint) -> None:
        """Lay a checkpoint beside the best one; `save` puts it in its place."""
        shutil.rmtree(self._next, ignore_errors=True)
        torch_checkpoint.save(self._next, unpublished)

    def save(self, network: Network, progress: Progress) -> None:
        """Write down an epoch: curves, state, and then what follows from the state."""
        self._draw_curves(progress)
        content = {"network": network.state_dict(), "progress": vars(progress)}
        unfinished = self.path / "state.unfinished"
        with unfinished.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(self.path / STATE)
        self._settle_best(progress)
        self._write_log(progress)

    def best_weights(self) -> dict[str, Tensor]:
        """Give the state dict of the best checkpoint, in float32."""
        return torch_checkpoint.load(self.path / BEST).network.state_dict()

    def save_weights(self, row: int, network: Network) -> None:
        """Keep the weights of an epoch, for an average."""
        path = self._weights(row)
        path.parent.mkdir(exist_ok=True)
        tensors = {
            name: tensor.detach().cpu().contiguous()
            for name, tensor in network.state_dict().items()
        }
        save_file(tensors, path.with_suffix(".unfinished"))
        path.with_suffix(".unfinished").replace(path)

    def weights(self, row: int) -> dict[str, Tensor] | None:
        """Give the weights of an epoch, if they were kept."""
        return load_file(self._weights(row)) if self._weights(row).exists() else None

    def prune_weights(self, *, keep: Iterable[int]) -> None:
        """Remove the weights of all epochs but these."""
        kept = {self._weights(row) for row in keep}
        for path in (self.path / "weights").glob("*"):
            if path not in kept:
                path.unlink()

    def _weights(self, row: int) -> Path:
        return self.path / "weights" / f"{row:04}.safetensors"

    def _settle_best(self, progress: Progress) -> None:
        """Make ``best/`` what the state says: promote the proposal, or throw it away."""
        best = self.path / BEST
        if self._previous.exists() and not best.exists() and not self._next.exists():
            self._previous.rename(best)
        if self._next.exists() and _rows(self._next) == progress.best_row + 1 > 0:
            shutil.rmtree(self._previous, ignore_errors=True)
            if best.exists():
                best.rename(self._previous)
            self._next.rename(best)
        shutil.rmtree(self._next, ignore_errors=True)
        shutil.rmtree(self._previous, ignore_errors=True)

    def _draw_curves(self, progress: Progress) -> None:
        if self._writer:
            row = progress.history[-1]
            for name in CURVES:
                if name in row:
                    self._writer.add_scalar(name, row[name], len(progress.history))
            self._writer.flush()

    def _write_log(self, progress: Progress) -> None:
        _write(self.path / LOG, "".join(json.dumps(row) + "\n" for row in progress.history))


def _same(fields: Mapping[str, Any], recipe: Recipe) -> bool:
    """Compare recipes, not their spelling: keys that came later have their defaults in old runs."""
    try:
        return Recipe.model_validate(fields) == recipe
    except ValueError:
        return False


def _changes(before: object, after: object, key: str = "") -> list[str]:
    """Say which keys differ, as `--set` names them."""
    if isinstance(before, dict) and isinstance(after, dict):
        pairs = [(name, before.get(name), after.get(name)) for name in {**before, **after}]
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = [(str(n), *each) for n, each in enumerate(zip(before, after, strict=True))]
    else:
        return [] if before == after else [f"{key} is {after}, was {before}"]
    return [
        found
        for name, old, new in pairs
        for found in _changes(old, new, f"{key}.{name}" if key else name)
    ]


def _rows(directory: Path) -> int:
    """Say after how many epochs a checkpoint was written; 0 where it is incomplete."""
    try:
        return len(checkpoint.load(directory).manifest.history)
    except CheckpointError:
        return 0


def _write(path: Path, text: str) -> None:
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(text)
    unfinished.replace(path)
