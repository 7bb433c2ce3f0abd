"""How fast could any server be? The pipeline without one, stage by stage, by batch size.

Run: make bench ARGS="photo.jpg"
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar, get_args

import torch

import result
from app.captioner.device import Precision
from app.captioner.pipeline import Captioner
from app.settings import PROJECT_ROOT, Settings

STAGES = ("decode", "encode", "search", "whole")
MAX_PIXELS = 100_000_000
Key = TypeVar("Key")
Image = TypeVar("Image")


class Step(NamedTuple):
    """Something to time, and how many images it does at once."""

    run: Callable[[], object]
    images: int


def measure(captioner: Captioner, photo: bytes, batch: int, repeats: int) -> dict[str, float]:
    """Give the median milliseconds per image of each stage; the stages take turns."""

    def read() -> torch.Tensor:
        return captioner.read(photo, max_pixels=MAX_PIXELS)

    steps = {
        "decode": Step(read, 1),
        **network_steps(captioner, [read()] * batch),
        "whole": Step(lambda: captioner.caption([read() for _ in range(batch)]), batch),
    }
    return medians_ms(steps, repeats, captioner.device)


def network_steps(captioner: Captioner, images: Sequence[torch.Tensor]) -> dict[str, Step]:
    """Give the steps ``encode`` and ``search`` for a batch that already lies on the device."""
    images_BCHW = torch.stack(list(images)).to(captioner.device)

    def encode() -> torch.Tensor:
        with torch.inference_mode():
            return captioner.network.encoder(images_BCHW)

    features_BRD = encode()
    return {
        "encode": Step(encode, len(images)),
        "search": Step(lambda: captioner.caption_features(features_BRD), len(images)),
    }


def medians_ms(steps: Mapping[Key, Step], repeats: int, device: torch.device) -> dict[Key, float]:
    """Give the median milliseconds per image; the steps take turns, so many times."""
    taken_s: dict[Key, list[float]] = {key: [] for key in steps}
    for _ in range(repeats):
        for key, step in steps.items():
            taken_s[key].append(_seconds(step.run, device))
    return {key: statistics.median(taken_s[key]) / step.images * 1e3 for key, step in steps.items()}


def taken_s(captioner: Captioner, photos: Sequence[bytes]) -> float:
    """Give the seconds in which a batch is decoded and captioned."""
    began_s = time.perf_counter()
    captioner.caption([captioner.read(photo, max_pixels=MAX_PIXELS) for photo in photos])
    return time.perf_counter() - began_s


def whole_per_s(captioner: Captioner, photos: Sequence[bytes], batch: int, seconds: float) -> float:
    """Give the photos a second of the whole pipeline, over all the time it took.

    A median would leave out what other users of the machine take, and a server cannot.
    """
    full, times = filled(photos, batch), 0
    began_s = time.perf_counter()
    while not times or time.perf_counter() < began_s + seconds:
        taken_s(captioner, full)
        times += 1
    return batch * times / (time.perf_counter() - began_s)


def filled(images: Sequence[Image], batch: int) -> list[Image]:
    """Let the images take turns until there are enough for a batch."""
    return list(itertools.islice(itertools.cycle(images), batch))


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def main() -> None:
    """Print the table, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photo", type=Path, help="a JPEG, PNG or WebP file")
    parser.add_argument("--checkpoint", type=Path, default=PROJECT_ROOT / Settings().checkpoint)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=get_args(Precision), default="float32")
    result.add_output(parser)
    args = parser.parse_args()
    captioner = Captioner.load(args.checkpoint, device=args.device, precision=args.precision)
    captioner.warm_up(args.batches)
    photo = args.photo.read_bytes()
    rows = {batch: measure(captioner, photo, batch, args.repeats) for batch in args.batches}
    about = {"device": str(captioner.device), "threads": torch.get_num_threads()}
    about["precision"] = args.precision
    line = {"benchmark": "limit", **about, "ms_per_image": rows}
    result.report(table_of(rows), line, args.output)


def table_of(rows: dict[int, dict[str, float]]) -> list[str]:
    """Give the lines of the table."""
    names = "".join(f"{name:>9}" for name in STAGES)
    return [
        "milliseconds per image, median; images/s of the whole pipeline",
        f"{'batch':>5}{names}{'images/s':>10}",
        *(_table_row(batch, row) for batch, row in rows.items()),
    ]


def _table_row(batch: int, row: dict[str, float]) -> str:
    cells = "".join(f"{row[name]:9.1f}" for name in STAGES)
    return f"{batch:5}{cells}{1e3 / row['whole']:10.1f}"


if __name__ == "__main__":
    main()
