"""What does a GPU make of it? Stages by batch size, and captions against the CPU's.

How near the encoder is to what the GPU can do is told against a large matrix product in half
precision, measured in the same run.

Run: .venv/bin/python benchmarks/gpu.py photo.jpg [more.jpg ...]
"""

import argparse
import math
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import load
import result
from app.captioner import checkpoint
from app.captioner.captions import Caption
from app.captioner.device import Precision
from app.captioner.pipeline import Captioner, fastest_precision
from app.settings import PROJECT_ROOT, Settings
from limit import MAX_PIXELS, Step, filled, medians_ms, network_steps

DEVICE = "cuda"
MATMUL_WIDTH = 8192
MATMULS = 20
BATCHES_PER_LANE = 4
Row = dict[str, float]
COLUMNS = {
    "encode_per_s": ("encode/s", 10, ".0f"),
    "search_per_s": ("search/s", 10, ".0f"),
    "whole_per_s": ("whole/s", 10, ".0f"),
    "lanes_per_s": ("lanes/s", 10, ".0f"),
    "encode_part": ("encode", 8, ".0%"),
    "search_part": ("search", 8, ".0%"),
    "rest_part": ("rest", 8, ".0%"),
    "encode_tflops": ("TFLOP/s", 9, ".2f"),
    "of_matmul": ("/matmul", 9, ".2%"),
}
_RATED = ("encode", "search", "whole", "lanes")


def flops_per_image(encoder: nn.Module, size_px: int) -> int:
    """Count the floating-point operations of the encoder's convolutions and matrix products.

    Args:
        encoder: takes uint8 images; on the CPU, as the checkpoint holds it.
        size_px: side of the square.

    Returns:
        A multiplication and an addition count two.
    """
    image_BCHW = torch.zeros(1, 3, size_px, size_px, dtype=torch.uint8)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        encoder(image_BCHW)
    return int(counter.get_total_flops())


def matmul_flops_per_s(device: torch.device, width: int = MATMUL_WIDTH) -> float:
    """Measure a square product in half precision, after as many to warm up."""
    left, right = (torch.randn(width, width, device=device).half() for _ in range(2))
    product = {"matmul": Step(lambda: left @ right, 1)}
    medians_ms(product, MATMULS, device)
    return 2 * width**3 / (medians_ms(product, MATMULS, device)["matmul"] / 1e3)


def stages_ms(
    captioner: Captioner, images: Sequence[Tensor], batches: Sequence[int], repeats: int
) -> dict[int, dict[str, float]]:
    """Give the median milliseconds per image of each stage, by batch size; all take turns.

    ``encode`` and ``search`` are started step by step, from what lies on the device. ``whole``
    starts from images in the memory of the host and ends with sentences, ``encode_in_whole`` and
    ``search_in_whole`` are its stages; ``lanes`` is the whole too, in as many threads as pay.
    """
    told: dict[int, list[dict[str, float]]] = {batch: [] for batch in batches}
    steps: dict[tuple[int, str], Step] = {}
    with ThreadPoolExecutor(captioner.lanes) as threads:
        for batch in batches:
            some = filled(images, batch)
            steps |= {(batch, name): step for name, step in network_steps(captioner, some).items()}
            steps[batch, "whole"] = Step(partial(_told, captioner, some, told[batch]), batch)
            several = [some] * captioner.lanes * BATCHES_PER_LANE
            in_lanes = partial(_all, threads, captioner, several)
            steps[batch, "lanes"] = Step(in_lanes, batch * len(several))
        for step in steps.values():
            step.run()  # first-time work: kernels are chosen by shape
        taken_ms = medians_ms(steps, repeats, captioner.device)
    rows: dict[int, dict[str, float]] = {batch: {} for batch in batches}
    for (batch, name), taken in taken_ms.items():
        rows[batch][name] = taken
    for batch, runs in told.items():
        for stage in ("encode", "search"):
            stage_s = median(run[stage] for run in runs[-repeats:])
            rows[batch][f"{stage}_in_whole"] = stage_s / batch * 1e3
    return rows


def _told(captioner: Captioner, images: Sequence[Tensor], told: list[dict[str, float]]) -> None:
    """Caption a batch, and note the seconds of its stages."""
    stages_s: dict[str, float] = {}

    def note(stage: str, began_s: float, ended_s: float) -> None:
        stages_s[stage] = ended_s - began_s

    captioner.caption(images, on_stage=note)
    told.append(stages_s)


def _all(threads: ThreadPoolExecutor, captioner: Captioner, batches: list[list[Tensor]]) -> None:
    list(threads.map(partial(captioner.caption, alone=False), batches))


def row_of(taken_ms: dict[str, float], flops: int, matmul: float) -> Row:
    """Turn milliseconds per image into images a second, parts of the whole, and FLOP/s.

    Args:
        taken_ms: from `stages_ms`.
        flops: of the encoder, for one image.
        matmul: FLOP/s of a large matrix product.
    """
    encode_part, search_part = (
        taken_ms[f"{name}_in_whole"] / taken_ms["whole"] for name in ("encode", "search")
    )
    rates = {f"{name}_per_s": 1e3 / taken_ms[name] for name in _RATED}
    return {
        **rates,
        "encode_part": encode_part,
        "search_part": search_part,
        "rest_part": 1 - encode_part - search_part,
        "encode_tflops": rates["encode_per_s"] * flops / 1e12,
        "of_matmul": rates["encode_per_s"] * flops / matmul,
    }


class Pair(NamedTuple):
    """What the CPU and the GPU say of one photo."""

    photo: str
    cpu: Caption
    gpu: Caption


def compared(cpu: Captioner, gpu: Captioner, paths: Sequence[Path]) -> list[Pair]:
    """Let both caption every photo, each in one batch."""
    images = [cpu.read(path.read_bytes(), max_pixels=MAX_PIXELS) for path in paths]
    said = zip(paths, cpu.caption(images), gpu.caption(images), strict=True)
    return [Pair(path.name, theirs[0], ours[0]) for path, theirs, ours in said]


def table_of(rows: dict[int, Row], pairs: Sequence[Pair]) -> list[str]:
    """Give the lines of the table, then both captions where they differ."""
    names = "".join(f"{title:>{width}}" for title, width, _ in COLUMNS.values())
    table = [f"{'batch':>5}{names}"]
    for batch, row in rows.items():
        cells = "".join(f"{row[key]:{width}{form}}" for key, (_, width, form) in COLUMNS.items())
        table.append(f"{batch:5}{cells}")
    table.append(f"{_same(pairs)} of {len(pairs)} captions are the CPU's, word for word")
    differing = [pair for pair in pairs if pair.cpu.text != pair.gpu.text]
    return table + [f"{p.photo}: CPU {p.cpu.text!r}, GPU {p.gpu.text!r}" for p in differing]


def _same(pairs: Sequence[Pair]) -> int:
    return sum(pair.cpu.text == pair.gpu.text for pair in pairs)


def _furthest(pairs: Sequence[Pair]) -> float:
    """Give the largest difference of log-probabilities of captions with the same words, in nats."""
    return max(
        (abs(p.cpu.log_prob - p.gpu.log_prob) for p in pairs if p.cpu.text == p.gpu.text),
        default=math.nan,
    )


def main() -> None:
    """Print the table, then one JSON line."""
    args = _arguments()
    if not torch.cuda.is_available():
        print("gpu.py needs a CUDA device, and torch sees none here", file=sys.stderr)
        sys.exit(2)
    cpu = Captioner.load(args.checkpoint)
    precision = args.precision or fastest_precision(DEVICE)
    gpu = Captioner.load(args.checkpoint, device=DEVICE, precision=precision)
    plain = checkpoint.load(args.checkpoint)  # a captioner may have prepared its own network
    images = [cpu.read(path.read_bytes(), max_pixels=MAX_PIXELS) for path in args.photos]
    flops = flops_per_image(plain.network.encoder, plain.manifest.image.size_px)
    matmul = matmul_flops_per_s(gpu.device)
    taken_ms = stages_ms(gpu, images, args.batches, args.repeats)
    rows = {batch: row_of(each, flops, matmul) for batch, each in taken_ms.items()}
    pairs = compared(cpu, gpu, args.photos)
    name = torch.cuda.get_device_name(gpu.device)
    about = f"encoder: {flops / 1e9:.2f} GFLOP an image; matmul: {matmul / 1e12:.0f} TFLOP/s, half"
    head = [f"{name}; {precision}; medians of {args.repeats}; {about}", "parts are of whole"]
    line = {
        "benchmark": "gpu",
        "device": name,
        "cuda": torch.version.cuda,
        "precision": precision,
        "repeats": args.repeats,
        "flops_per_image": flops,
        "matmul_flops_per_s": matmul,
        "rows": rows,
        "captions": {"photos": len(pairs), "same": _same(pairs)},
        "log_prob_differs_by": _furthest(pairs),
    }
    result.report([*head, *table_of(rows, pairs)], load.without_nan(line), args.output)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path, nargs="+", metavar="PHOTO")
    parser.add_argument("--checkpoint", type=Path, default=PROJECT_ROOT / Settings().checkpoint)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--precision", choices=get_args(Precision), help="the fastest without it")
    result.add_output(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
