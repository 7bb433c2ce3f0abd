"""What else could caption the photo? Our checkpoint against a BLIP-base-sized network.

BLIP is built from its configuration with random weights, so nothing is downloaded but
transformers; what it says means nothing, what it costs is what the real one costs. It writes as
many words as our captions have. The two take turns, each in a process of its own.

Run: .venv/bin/python benchmarks/alternatives.py --cache /tmp/peers photo.jpg
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import result
from shipped import PROJECT_ROOT, SHIPPED

BEAMS = 3
NAMES = ("captioner", "blip-base")
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""What a batch norm has seen; no parameters."""


# --- in the child -------------------------------------------------------------------------------


def run_captioner(args: argparse.Namespace) -> dict[str, Any]:
    """Load our checkpoint, read the photo and caption it, at each batch size."""
    from app.captioner.pipeline import Captioner  # noqa: PLC0415 - the other child needs none
    from limit import MAX_PIXELS, side_by_side  # noqa: PLC0415

    captioner = Captioner.load(args.checkpoint, precision="float32", workers=args.threads)
    data = args.photo.read_bytes()

    def caption(batch: int) -> int:
        images = [captioner.read(data, max_pixels=MAX_PIXELS) for _ in range(batch)]
        return len(side_by_side(captioner, images)[0][0].words)

    return _measured(args, caption, parameters_of(args.checkpoint))


def parameters_of(directory: Path) -> int:
    """Count the numbers of a checkpoint's weights."""
    from app.captioner import tensors  # noqa: PLC0415

    places = tensors.layout((directory / "weights.safetensors").read_bytes())
    return sum(
        math.prod(place.shape)
        for name, place in places.items()
        if name != tensors.GRAPH_CONSTANTS and not name.endswith(STATISTICS)
    )


def run_blip(args: argparse.Namespace) -> dict[str, Any]:
    """Build BLIP-base with random weights, read the photo and caption it, at each batch size."""
    import torch  # noqa: PLC0415
    from PIL import Image  # noqa: PLC0415
    from transformers import (  # noqa: PLC0415
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
    )

    network = BlipForConditionalGeneration(BlipConfig()).eval()
    processor = BlipImageProcessor()
    tokens = args.words + 1  # the end mark

    @torch.inference_mode()
    def caption(batch: int) -> int:
        images = [Image.open(args.photo).convert("RGB") for _ in range(batch)]
        pixels = processor(images, return_tensors="pt")["pixel_values"]
        network.generate(pixels, num_beams=BEAMS, min_new_tokens=tokens, max_new_tokens=tokens)
        return int(args.words)

    return _measured(args, caption, sum(each.numel() for each in network.parameters()))


def _measured(
    args: argparse.Namespace, caption: Callable[[int], int], parameters: int
) -> dict[str, Any]:
    words = caption(1)
    seconds = {batch: _median_s(caption, batch, args.repeats) for batch in args.batches}
    return {
        "words": words,
        "parameters": parameters,
        "ms": {batch: taken_s / batch * 1e3 for batch, taken_s in seconds.items()},
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
    }


def _median_s(caption: Callable[[int], int], batch: int, repeats: int) -> float:
    caption(batch)
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        caption(batch)
        taken.append(time.perf_counter() - started)
    return sorted(taken)[len(taken) // 2]


# --- in the parent ------------------------------------------------------------------------------


def asked(name: str, python: Path, words: int, args: argparse.Namespace) -> dict[str, Any]:
    """Measure one alternative in a fresh process.

    Raises:
        RuntimeError: it failed; the message is its last line.
    """
    command = [python, __file__, args.photo, "--child", name, "--words", str(words)]
    command += ["--checkpoint", args.checkpoint, "--repeats", str(args.repeats)]
    command += ["--threads", str(args.threads)]
    command += ["--batches", *map(str, args.batches)]
    threads = {"OMP_NUM_THREADS": str(args.threads), "PYTHONPATH": str(PROJECT_ROOT)}
    ran = subprocess.run(
        command, env={**os.environ, **threads}, capture_output=True, text=True, check=False
    )
    if ran.returncode:
        raise RuntimeError((ran.stderr.strip().splitlines() or ["no message"])[-1])
    return dict(json.loads(ran.stdout.splitlines()[-1]))


def main() -> None:
    """Measure in turns, print the table, then one JSON line."""
    args = _arguments()
    if args.child:
        children = {"captioner": run_captioner, "blip-base": run_blip}
        print(json.dumps(children[args.child](args)))
        return
    seen, reason = _compared(args)
    rows = {name: _middle(each) for name, each in seen.items() if each}
    for row in rows.values():
        row["times_ours"] = _times(row, rows["captioner"])
    line = {"benchmark": "alternatives", "threads": args.threads, "rounds": args.rounds}
    line |= {"rows": rows, "unavailable": reason}
    result.report(_table(args, rows, reason), line, args.output)


def _table(args: argparse.Namespace, rows: dict[str, dict[str, Any]], reason: str) -> list[str]:
    table = [f"milliseconds per caption, medians; {args.threads} threads, beam {BEAMS}"]
    batches = "".join(f"{f'batch {batch}':>11}" for batch in args.batches)
    table.append(f"{'':<11}{'parameters':>12}{'words':>7}{'MiB':>7}{batches}{'times ours':>12}")
    for name, row in rows.items():
        cells = "".join(f"{row['ms'][str(batch)]:11.0f}" for batch in args.batches)
        size = f"{row['parameters'] / 1e6:11.1f}M{row['words']:7}{row['peak_mb']:7.0f}"
        table.append(f"{name:<11}{size}{cells}{row['times_ours']:12.1f}")
    return [*table, f"blip-base: {reason}"] if reason else table


def _compared(args: argparse.Namespace) -> tuple[dict[str, list[dict[str, Any]]], str]:
    """Let the two take turns; say why there is no BLIP where there is none."""
    from servers import Unavailable, environment, tell  # noqa: PLC0415 - the children lack psutil

    seen: dict[str, list[dict[str, Any]]] = {name: [] for name in NAMES}
    for turn in range(args.rounds):
        tell(f"round {turn + 1} of {args.rounds}")
        ours = asked("captioner", Path(sys.executable), args.words, args)
        seen["captioner"].append(ours)
        try:
            python = environment("transformers", ["transformers"], args.cache)
            seen["blip-base"].append(asked("blip-base", python, ours["words"], args))
        except (Unavailable, RuntimeError) as error:
            return seen, str(error)
    return seen, ""


def _middle(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Give the run whose slowest batch took the median time."""
    return sorted(runs, key=lambda run: max(run["ms"].values()))[len(runs) // 2]


def _times(row: dict[str, Any], ours: dict[str, Any]) -> float:
    """How many times our cost, at the batch size that is best for each."""
    return float(min(row["ms"].values()) / min(ours["ms"].values()))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photo", type=Path, help="a JPEG, PNG or WebP file")
    parser.add_argument("--cache", type=Path, help="for the environment of transformers")
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="cores that compute")
    parser.add_argument("--words", type=int, default=10, help=argparse.SUPPRESS)
    parser.add_argument("--child", choices=NAMES, help=argparse.SUPPRESS)
    result.add_output(parser)
    args = parser.parse_args()
    if not args.child and not args.cache:
        parser.error("--cache says where transformers is installed")
    return args


if __name__ == "__main__":
    main()
