"""Several checkpoints of one network -> a run directory with their mean."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app.captioner.manifest import WEIGHTS
from app.captioner.model import torch_checkpoint
from app.captioner.model.torch_checkpoint import TorchCheckpoint
from trainer.errors import TrainerError
from trainer.training.averaging import mean
from trainer.training.run_directory import BEST


def average(directories: Sequence[Path], run: Path, *, shares: Sequence[float] = ()) -> Path:
    """Average the weights of checkpoints.

    The mean of networks that were trained on from one another often captions better than each of
    them: what each learned by heart differs.

    Args:
        directories: checkpoint directories, published or ``best`` of a run. Search, recipe and
            versions are those of the first.
        run: a new run directory; ``publish`` and ``fit --initial`` take what is in it.
        shares: of each checkpoint, in any unit; equal without them.

    Returns:
        The directory of the mean.

    Raises:
        CheckpointError: a directory cannot be trusted, or the run has its best already.
        TrainerError: fewer than two, shares that do not fit, or networks that differ in more than
            their weights.

    Reference: Wortsman et al. 2022, "Model soups", section 2, with shares.
    """
    parts = _shares(directories, shares)
    loaded = [torch_checkpoint.load(directory) for directory in directories]
    for directory, each in zip(directories[1:], loaded[1:], strict=True):
        _refuse_another(directory, each, than=loaded[0])
    first = loaded[0]
    first.network.load_state_dict(mean([each.network.state_dict() for each in loaded], parts))
    row: dict[str, Any] = {
        "stage": 0,
        "kind": "mean",
        "epoch": 0,
        "of": [_describe(each, part) for each, part in zip(loaded, parts, strict=True)],
    }
    manifest = first.manifest.model_copy(update={"history": [row], "scores": {}})
    torch_checkpoint.save(run / BEST, first._replace(manifest=manifest))
    return run / BEST


def _shares(directories: Sequence[Path], shares: Sequence[float]) -> list[float]:
    if len(directories) < 2:
        raise TrainerError(f"a mean takes two checkpoints or more, got {len(directories)}")
    given = list(shares) or [1.0] * len(directories)
    if len(given) != len(directories) or min(given) <= 0:
        raise TrainerError(
            f"expected {len(directories)} shares above 0, one for each checkpoint, got {given}"
        )
    return [share / sum(given) for share in given]


def _refuse_another(directory: Path, one: TorchCheckpoint, *, than: TorchCheckpoint) -> None:
    pairs = {
        "architecture": (one.network.architecture, than.network.architecture),
        "vocabulary": (one.vocabulary, than.vocabulary),
        "image": (one.manifest.image, than.manifest.image),
    }
    for name, (found, expected) in pairs.items():
        if found != expected:
            raise TrainerError(
                f"{directory} has another {name} than the first checkpoint: only networks that "
                "were trained on from one another have a mean"
            )


def _describe(part: TorchCheckpoint, share: float) -> dict[str, Any]:
    manifest = part.manifest
    about = {"name": manifest.name, "version": manifest.version}
    return {**about, "sha256": manifest.files[WEIGHTS], "share": round(share, 4)}
