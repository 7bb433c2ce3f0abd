"""How fast could any server be? The pipeline without one, stage by stage, by batch size.

Run: make bench ARGS="photo.jpg"
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from app.captioner.pipeline import Captioner
from app.settings import PROJECT_ROOT, Settings

STAGES = ("decode", "encode", "search", "whole")


def measure(captioner: Captioner, photo: bytes, batch: int, repeats: int) -> dict[str, float]:
    """Give the median milliseconds per image of each stage; the stages take turns."""
    device = captioner.device
    image = captioner.read(photo, max_pixels=100_000_000)
    images_BCHW = torch.stack([image] * batch).to(device)

    def encode() -> torch.Tensor:
        with torch.inference_mode():
            return captioner.network.encoder(images_BCHW)

    features_BRD = encode()
    steps: dict[str, Callable[[], object]] = {
        "decode": lambda: captioner.read(photo, max_pixels=100_000_000),
        "encode": encode,
        "search": lambda: captioner.caption_features(features_BRD),
        "whole": lambda: captioner.caption(
            [captioner.read(photo, max_pixels=100_000_000) for _ in range(batch)]
        ),
    }
    taken = {name: [] for name in STAGES}
    for _ in range(repeats):
        for name, step in steps.items():
            taken[name].append(_seconds(step, device))
    images = {"decode": 1, "encode": batch, "search": batch, "whole": batch}
    return {name: statistics.median(taken[name]) / images[name] * 1e3 for name in STAGES}


def _seconds(step: Callable[[], object], device: torch.device) -> float:
    started = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    """Print the table, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photo", type=Path, help="a JPEG, PNG or WebP file")
    parser.add_argument("--checkpoint", type=Path, default=PROJECT_ROOT / Settings().checkpoint)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    captioner = Captioner.load(args.checkpoint, device=args.device)
    captioner.warm_up(args.batches)
    print("milliseconds per image, median; images/s of the whole pipeline")
    print(f"{'batch':>5}" + "".join(f"{name:>9}" for name in STAGES) + f"{'images/s':>10}")
    rows = {}
    for batch in args.batches:
        rows[batch] = row = measure(captioner, args.photo.read_bytes(), batch, args.repeats)
        cells = "".join(f"{row[name]:9.1f}" for name in STAGES)
        print(f"{batch:5}{cells}{1e3 / row['whole']:10.1f}")
    about = {"device": str(captioner.device), "threads": torch.get_num_threads()}
    print(json.dumps({"benchmark": "limit", **about, "ms_per_image": rows}))


if __name__ == "__main__":
    main()
