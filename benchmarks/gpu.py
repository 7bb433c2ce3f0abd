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
from pathlib import Path
from typing import NamedTuple, get_args

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import load
import result
from app.captioner.captions import Caption
from app.captioner.engines import gpu as gpu_engine
from app.captioner.engines.engine import Precision
from app.captioner.engines.torch_engine import stacked
from app.captioner.image.decode import Pixels
from app.captioner.model import torch_checkpoint
from app.captioner.model.network import Network
from app.captioner.pipeline import Captioner
from app.settings import PROJECT_ROOT, Settings
from limit import MAX_PIXELS, Step, captioning, filled, medians_ms, timed

DEVICE = "cuda"
MATMUL_WIDTH = 8192
MATMULS = 20
BATCHES_SIDE_BY_SIDE = 4
Row = dict[str, float]
COLUMNS = {
    "encoder_per_s": ("encoder/s", 11, ".0f"),
    "whole_per_s": ("whole/s", 10, ".0f"),
    "beside_per_s": ("beside/s", 10, ".0f"),
    "encode_part": ("encode", 8, ".0%"),
    "search_part": ("search", 8, ".0%"),
    "rest_part": ("rest", 8, ".0%"),
    "encoder_tflops": ("TFLOP/s", 9, ".2f"),
    "of_matmul": ("/matmul", 9, ".2%"),
}
_RATED = ("encoder", "whole", "beside")


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

    def product() -> None:
        _ = left @ right
        _wait_for(device)

    steps = {width: timed("matmul", product, 1)}
    medians_ms(steps, MATMULS)
    return 2 * width**3 / (medians_ms(steps, MATMULS)[width]["matmul"] / 1e3)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def stages_ms(
    captioner: Captioner, network: Network, images: Sequence[Pixels], args: argparse.Namespace
) -> dict[int, Row]:
    """Give the median milliseconds per image of each stage, by batch size; all take turns.

    ``whole`` starts from images in the memory of the host and ends with sentences, ``encode`` and
    ``search`` are its stages; ``beside`` is the whole too, in as many threads as pay. ``encoder``
    is the network's alone, started kernel by kernel, from what lies on the device.
    """
    steps: dict[tuple[int, str], Step] = {}
    with ThreadPoolExecutor(captioner.engine.max_concurrent_batches) as threads:
        for batch in args.batches:
            some = filled(images, batch)
            steps[batch, "encoder"] = encoding(network, some)
            steps[batch, "whole"] = captioning(captioner, some)
            steps[batch, "beside"] = batches_beside(captioner, some, threads)
        for step in steps.values():
            step.run()  # first-time work: kernels are chosen by shape
        taken_ms = medians_ms(steps, args.repeats)
    rows: dict[int, Row] = {batch: {} for batch in args.batches}
    for (batch, _), taken in taken_ms.items():
        rows[batch] |= taken
    return rows


def encoding(network: Network, images: Sequence[Pixels]) -> Step:
    """Time the encoder alone, of a batch that lies on the device."""
    images_BCHW = stacked(images, network)

    @torch.inference_mode()
    def encode() -> None:
        network.encoder(images_BCHW)
        _wait_for(images_BCHW.device)

    return timed("encoder", encode, len(images))


def batches_beside(
    captioner: Captioner, images: Sequence[Pixels], threads: ThreadPoolExecutor
) -> Step:
    """Time several batches that are captioned side by side."""
    batches = [images] * captioner.engine.max_concurrent_batches * BATCHES_SIDE_BY_SIDE
    return timed(
        "beside",
        lambda: list(threads.map(captioner.caption, batches)),
        len(images) * len(batches),
    )


def row_of(taken_ms: dict[str, float], flops: int, matmul: float) -> Row:
    """Turn milliseconds per image into images a second, parts of the whole, and FLOP/s.

    Args:
        taken_ms: from `stages_ms`.
        flops: of the encoder, for one image.
        matmul: FLOP/s of a large matrix product.
    """
    encode_part, search_part = (taken_ms[name] / taken_ms["whole"] for name in ("encode", "search"))
    rates = {f"{name}_per_s": 1e3 / taken_ms[name] for name in _RATED}
    return {
        **rates,
        "encode_part": encode_part,
        "search_part": search_part,
        "rest_part": 1 - encode_part - search_part,
        "encoder_tflops": rates["encoder_per_s"] * flops / 1e12,
        "of_matmul": rates["encoder_per_s"] * flops / matmul,
    }


class Pair(NamedTuple):
    """What the CPU and the GPU say of one photo."""

    photo: str
    cpu: Caption
    gpu: Caption


def compared(cpu: Captioner, gpu: Captioner, paths: Sequence[Path]) -> list[Pair]:
    """Let both caption every photo, each in one batch."""
    images = [cpu.read(path.read_bytes(), max_pixels=MAX_PIXELS) for path in paths]
    said = zip(paths, cpu.caption(images).captions, gpu.caption(images).captions, strict=True)
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
    cpu = Captioner.load(args.checkpoint, precision="float32")
    precision = args.precision or gpu_engine.fastest_precision()
    gpu = Captioner.load(args.checkpoint, device=DEVICE, precision=precision)
    trained = torch_checkpoint.load(args.checkpoint)
    images = [cpu.read(path.read_bytes(), max_pixels=MAX_PIXELS) for path in args.photos]
    flops = flops_per_image(trained.network.encoder, trained.manifest.image.size_px)
    matmul = matmul_flops_per_s(torch.device(DEVICE))
    network = gpu_engine.prepared(trained.network.to(DEVICE), getattr(torch, precision))
    taken_ms = stages_ms(gpu, network, images, args)
    rows = {batch: row_of(each, flops, matmul) for batch, each in taken_ms.items()}
    pairs = compared(cpu, gpu, args.photos)
    name = torch.cuda.get_device_name(DEVICE)
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
