"""How fast could any server be? The pipeline without one, stage by stage, by batch size.

Run: make bench ARGS="photo.jpg"
"""

import argparse
import itertools
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar, get_args

import result
from app.captioner.captions import Caption
from app.captioner.engines.engine import Precision
from app.captioner.image.decode import Pixels
from app.captioner.pipeline import Captioner
from app.settings import PROJECT_ROOT, Settings

STAGES = ("decode", "encode", "search", "whole")
MAX_PIXELS = 100_000_000
Key = TypeVar("Key")
Image = TypeVar("Image")
Stages = dict[str, float]
"""By the name of a stage."""


class Step(NamedTuple):
    """Something to time.

    Attributes:
        run: gives the seconds that each of its stages took.
        images: how many images it does at once.
    """

    run: Callable[[], Stages]
    images: int


def timed(name: str, run: Callable[[], object], images: int) -> Step:
    """Time a call as a whole."""

    def stages() -> Stages:
        began_s = time.perf_counter()
        run()
        return {name: time.perf_counter() - began_s}

    return Step(stages, images)


def captioning(captioner: Captioner, images: Sequence[Pixels]) -> Step:
    """Time ``encode``, ``search`` and the ``whole`` of a batch that is read already."""

    def stages() -> Stages:
        began_s = time.perf_counter()
        found = captioner.caption(images)
        whole_s = time.perf_counter() - began_s
        return {**{name: end - begin for name, begin, end in found.stages}, "whole": whole_s}

    return Step(stages, len(images))


def from_bytes(captioner: Captioner, photos: Sequence[bytes]) -> Step:
    """Time ``decode``, ``encode``, ``search`` and the ``whole`` of a batch of files."""

    def stages() -> Stages:
        began_s = time.perf_counter()
        images = [captioner.read(photo, max_pixels=MAX_PIXELS) for photo in photos]
        decode_s = time.perf_counter() - began_s
        taken = captioning(captioner, images).run()
        return {"decode": decode_s, **taken, "whole": decode_s + taken["whole"]}

    return Step(stages, len(photos))


def medians_ms(steps: Mapping[Key, Step], repeats: int) -> dict[Key, Stages]:
    """Give the median milliseconds per image of each stage; the steps take turns, so many times."""
    runs: dict[Key, list[Stages]] = {key: [] for key in steps}
    for _ in range(repeats):
        for key, step in steps.items():
            runs[key].append(step.run())
    return {key: _middle(runs[key], step.images) for key, step in steps.items()}


def _middle(runs: Sequence[Stages], images: int) -> Stages:
    return {name: statistics.median(run[name] for run in runs) / images * 1e3 for name in runs[0]}


def side_by_side(captioner: Captioner, images: Sequence[Pixels]) -> list[tuple[Caption, ...]]:
    """Caption one batch on all cores of the captioner: each takes an equal part of it."""
    workers = min(captioner.engine.max_concurrent_batches, len(images))
    parts = [images[n::workers] for n in range(workers)]
    with ThreadPoolExecutor(workers) as threads:
        found = list(threads.map(lambda part: captioner.caption(part).captions, parts))
    return [found[n % workers][n // workers] for n in range(len(images))]


def best_of(captioner: Captioner, photo: bytes) -> str:
    """Say the best caption of a photo."""
    image = captioner.read(photo, max_pixels=MAX_PIXELS)
    return captioner.caption([image]).captions[0][0].text


def taken_s(captioner: Captioner, photos: Sequence[bytes]) -> float:
    """Give the seconds in which a batch is decoded and captioned."""
    began_s = time.perf_counter()
    captioner.caption([captioner.read(photo, max_pixels=MAX_PIXELS) for photo in photos])
    return time.perf_counter() - began_s


def whole_per_s(captioner: Captioner, photos: Sequence[bytes], batch: int, seconds: float) -> float:
    """Give the photos a second of the whole pipeline, over all the time it took.

    As many batches run side by side as pay. A median would leave out what other users of the
    machine take, and a server cannot.
    """
    full, workers = filled(photos, batch), captioner.engine.max_concurrent_batches
    began_s = time.perf_counter()

    def batches(_: int) -> int:
        times = 0
        while not times or time.perf_counter() < began_s + seconds:
            taken_s(captioner, full)
            times += 1
        return times

    with ThreadPoolExecutor(workers) as threads:
        times = sum(threads.map(batches, range(workers)))
    return batch * times / (time.perf_counter() - began_s)


def filled(images: Sequence[Image], batch: int) -> list[Image]:
    """Let the images take turns until there are enough for a batch."""
    return list(itertools.islice(itertools.cycle(images), batch))


def measure(captioner: Captioner, photo: bytes, args: argparse.Namespace) -> dict[int, Stages]:
    """Give milliseconds per image of each stage, and images a second on all cores, by batch."""
    steps = {batch: from_bytes(captioner, [photo] * batch) for batch in args.batches}
    rows = medians_ms(steps, args.repeats)
    for batch, row in rows.items():
        row["per_s"] = whole_per_s(captioner, [photo], batch, args.seconds)
    return rows


def main() -> None:
    """Print the table, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photo", type=Path, help="a JPEG, PNG or WebP file")
    parser.add_argument("--checkpoint", type=Path, default=PROJECT_ROOT / Settings().checkpoint)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=2.0, help="of all cores, for each batch")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of all cores")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--precision", choices=get_args(Precision), default="float32")
    result.add_output(parser)
    args = parser.parse_args()
    captioner = Captioner.load(
        args.checkpoint, device=args.device, precision=args.precision, workers=args.threads
    )
    captioner.warm_up(args.batches)
    rows = measure(captioner, args.photo.read_bytes(), args)
    about = {name: getattr(args, name) for name in ("device", "threads", "precision")}
    line = {"benchmark": "limit", **about, "rows": rows}
    result.report(table_of(rows), line, args.output)


def table_of(rows: dict[int, Stages]) -> list[str]:
    """Give the lines of the table."""
    names = "".join(f"{name:>9}" for name in STAGES)
    return [
        "milliseconds per image of one batch alone, median; images/s of batches side by side",
        f"{'batch':>5}{names}{'images/s':>10}",
        *(_table_row(batch, row) for batch, row in rows.items()),
    ]


def _table_row(batch: int, row: Stages) -> str:
    cells = "".join(f"{row[name]:9.1f}" for name in STAGES)
    return f"{batch:5}{cells}{row['per_s']:10.1f}"


if __name__ == "__main__":
    main()
