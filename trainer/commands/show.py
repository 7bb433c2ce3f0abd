"""The verb ``show``: runs side by side, how they went and in what they differ."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trainer.errors import TrainerError
from trainer.training.run_directory import LOG

_MOST_DIFFERENCES = 40


class _Run(NamedTuple):
    """What a run directory tells of itself."""

    name: str
    rows: list[dict[str, Any]]
    recipe: dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``show``."""
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="what fit wrote")


def run(args: argparse.Namespace) -> int:
    """Print a table of the runs, and what differs in their recipes."""
    runs = [_read(path) for path in args.runs]
    print(_table(runs))
    differing = _differences(runs)
    if differing:
        print(f"\n{_grid([['recipe', *(run.name for run in runs)], *differing])}")
    return 0


def _read(path: Path) -> _Run:
    try:
        rows = [json.loads(line) for line in (path / LOG).read_text().splitlines()]
        recipe = json.loads((path / "recipe.json").read_text())
    except (OSError, ValueError) as error:
        raise TrainerError(f"{path} is no run that has finished an epoch: {error}") from None
    if not rows:
        raise TrainerError(f"{path} is no run that has finished an epoch")
    return _Run(str(path), rows, recipe)


def _table(runs: Sequence[_Run]) -> str:
    header = ["run", "epochs", "dev CIDEr", "at epoch", "dev loss", "distinct captions", "minutes"]
    return _grid([header, *(_row(run) for run in runs)])


def _row(run: _Run) -> list[str]:
    best = max(
        range(len(run.rows)),
        key=lambda n: (run.rows[n]["dev_cider"], -run.rows[n].get("dev_loss", 0.0)),
    )
    row = run.rows[best]
    minutes = sum(each.get("seconds", 0.0) for each in run.rows) / 60
    loss = row.get("dev_loss")
    return [
        run.name,
        str(len(run.rows)),
        f"{row['dev_cider']:.3f}",
        str(best + 1),
        "" if loss is None else f"{loss:.3f}",
        str(row.get("dev_distinct_captions", "")),
        f"{minutes:.0f}",
    ]


def _differences(runs: Sequence[_Run]) -> list[list[str]]:
    """Give the keys of recipes whose values are not the same everywhere."""
    flat = [dict(_flat(run.recipe)) for run in runs]
    names = sorted({name for each in flat for name in each})
    told = [[name, *(str(each.get(name, "")) for each in flat)] for name in names]
    return [row for row in told if len(set(row[1:])) > 1][:_MOST_DIFFERENCES]


def _flat(value: object, key: str = "") -> list[tuple[str, object]]:
    if isinstance(value, Mapping):
        pairs = [(str(name), each) for name, each in value.items()]
    elif isinstance(value, list) and any(isinstance(each, Mapping) for each in value):
        pairs = [(str(n), each) for n, each in enumerate(value)]
    else:
        return [(key, value)]
    return [
        found for name, each in pairs for found in _flat(each, f"{key}.{name}" if key else name)
    ]


def _grid(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
    return "\n".join(lines)
