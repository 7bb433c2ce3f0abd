"""What does each part of our engine bring? From plain torch to all cores, in turns.

Each row has what the one above it has, and one thing more. Photos are read beforehand.

Run: .venv/bin/python benchmarks/ablation.py photo.jpg
"""

import argparse
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

import result
from app.captioner import checkpoint
from app.captioner.engines.cpu import fastest_precision
from app.captioner.image.decode import Pixels
from app.captioner.pipeline import Captioner
from limit import filled, medians_ms, side_by_side, timed
from plain import PlainCaptioner
from shipped import SHIPPED

BATCHES = (1, 8)
PLAIN = "plain torch"
Rows = dict[str, dict[int, float]]
"""By what captions: milliseconds per image by batch size."""


def captioners(directory: Path, cores: int) -> dict[str, Callable[[list[Pixels]], object]]:
    """Give a way to caption a batch for each row; torch has all cores from the beginning."""
    loaded = checkpoint.load(directory)
    fastest = fastest_precision(loaded)
    reduced = Captioner.of(loaded, precision=fastest, workers=cores)
    return {
        PLAIN: PlainCaptioner.load(directory).caption,
        "our engine in float32, one core": Captioner.of(loaded, precision="float32").caption,
        f"{fastest}, one core": reduced.caption,
        f"{fastest}, {cores} cores": partial(side_by_side, reduced),
    }


def measured(
    ways: dict[str, Callable[[list[Pixels]], object]], images: Sequence[Pixels], repeats: int
) -> Rows:
    """Give the medians; every row takes its turn in every round."""
    steps = {
        (name, batch): timed("whole", partial(caption, filled(images, batch)), batch)
        for name, caption in ways.items()
        for batch in BATCHES
    }
    medians_ms(steps, 1)  # first-time work
    rows: Rows = {name: {} for name in ways}
    for (name, batch), taken in medians_ms(steps, repeats).items():
        rows[name][batch] = taken["whole"]
    return rows


def table_of(rows: Rows) -> list[str]:
    """Give the lines of the table; the last columns compare with plain torch."""
    head = "".join(f"{f'batch {batch}':>10}" for batch in BATCHES)
    times = "".join(f"{f'times, {batch}':>10}" for batch in BATCHES)
    table = [
        "milliseconds per image, medians; times faster than plain torch",
        f"{'':<34}{head}{times}",
    ]
    for name, row in rows.items():
        cells = "".join(f"{row[batch]:10.1f}" for batch in BATCHES)
        faster = "".join(f"{rows[PLAIN][batch] / row[batch]:10.2f}" for batch in BATCHES)
        table.append(f"{name:<34}{cells}{faster}")
    return table


def main() -> None:
    """Print the table, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path, nargs="+", metavar="PHOTO")
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED)
    parser.add_argument("--cores", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=15)
    result.add_output(parser)
    args = parser.parse_args()
    torch.set_num_threads(args.cores)
    ways = captioners(args.checkpoint, args.cores)
    reader = PlainCaptioner.load(args.checkpoint)
    images = [reader.read(photo.read_bytes()) for photo in args.photos]
    rows = measured(ways, images, args.repeats)
    line = {"benchmark": "ablation", "cores": args.cores, "ms_per_image": rows}
    result.report(table_of(rows), line, args.output)


if __name__ == "__main__":
    main()
