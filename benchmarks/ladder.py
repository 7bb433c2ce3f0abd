"""What does each step of our engine bring, from the network as it was trained to lanes?

Run: .venv/bin/python benchmarks/ladder.py photo.jpg
"""

import argparse
import os
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import result
from app.captioner import beam, checkpoint, compiled, fused
from app.captioner.pipeline import Captioner, fastest_precision
from app.captioner.vocabulary import BOS, EOS, PAD, UNK
from app.settings import PROJECT_ROOT, Settings
from limit import MAX_PIXELS, Step, filled, medians_ms, network_steps

BATCHES = (1, 8)
Row = dict[str, float]


class InTorch(Captioner):
    """A captioner that searches without the compiled steps."""

    def _search(self, features_BRD: Tensor, *, wanted: beam.Wanted | None) -> beam.Beams:
        marks = {"bos": BOS, "eos": EOS, "banned": (PAD, UNK)}
        decoder, options = self.network.decoder, self.manifest.search
        return beam.search(decoder, features_BRD, options, **marks, wanted=wanted)


def rungs(directory: Path, cores: int) -> dict[str, Captioner]:
    """Give a captioner per step, each with what the ones before it have."""
    loaded = checkpoint.load(directory)
    captioners = {"as trained": Captioner(loaded)}
    captioners["as trained"].network = loaded.network
    if fused.available():
        captioners["folded, fused, packed"] = packed = InTorch(loaded)
        packed.network.encoder = fused.packed_encoder(loaded.network.encoder, torch.float32)
        fastest = fastest_precision("cpu")
        last = "ONNX Runtime" if fastest == "float32" else fastest
        captioners[last] = InTorch(loaded, precision=fastest)
        if compiled.available():
            captioners["small steps compiled"] = Captioner(loaded, precision=fastest)
        captioners["lanes"] = Captioner(loaded, precision=fastest, cores=cores)
    return captioners


def measure(captioner: Captioner, image: torch.Tensor, repeats: int) -> Row:
    """Give milliseconds per image of encoder, search and both, by batch size."""
    row: Row = {}
    for batch in BATCHES:
        images = filled([image], batch)
        steps = network_steps(captioner, images)
        steps["both"] = Step(partial(captioner.caption, images), batch)
        taken = medians_ms(steps, repeats, captioner.device)
        row |= {f"{stage} {batch}": ms for stage, ms in taken.items()}
    row["side by side"] = side_by_side_ms(captioner, filled([image], BATCHES[-1]), repeats)
    return row


def side_by_side_ms(captioner: Captioner, images: Sequence[torch.Tensor], repeats: int) -> float:
    """Give milliseconds per image when every lane has a batch, all the time."""
    call = partial(captioner.caption, images, alone=captioner.lanes == 1)
    batches = captioner.lanes * repeats
    started = time.perf_counter()
    if captioner.lanes == 1:  # in this thread, which has torch's helpers already
        for _ in range(batches):
            call()
    else:
        with ThreadPoolExecutor(captioner.lanes) as lanes:
            for job in [lanes.submit(call) for _ in range(batches)]:
                job.result()
    return (time.perf_counter() - started) * 1e3 / (batches * len(images))


def medians(rounds: Sequence[Row]) -> Row:
    """Give the median of every figure."""
    return {name: statistics.median(row[name] for row in rounds) for name in rounds[0]}


def main() -> None:
    """Print the table, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photo", type=Path, help="a JPEG, PNG or WebP file")
    parser.add_argument("--checkpoint", type=Path, default=PROJECT_ROOT / Settings().checkpoint)
    parser.add_argument("--cores", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=5, help="of a step in a round")
    parser.add_argument("--rounds", type=int, default=3)
    result.add_output(parser)
    args = parser.parse_args()
    torch.set_num_threads(args.cores)
    captioners = rungs(args.checkpoint, args.cores)
    image = captioners["as trained"].read(args.photo.read_bytes(), max_pixels=MAX_PIXELS)
    seen: dict[str, list[Row]] = {name: [] for name in captioners}
    for _ in range(args.rounds):
        for name, captioner in captioners.items():
            seen[name].append(measure(captioner, image, args.repeats))
    rows = {name: medians(each) for name, each in seen.items()}
    line = {"benchmark": "ladder", "cores": args.cores, "ms_per_image": rows}
    result.report(table_of(rows), line, args.output)


def table_of(rows: dict[str, Row]) -> list[str]:
    """Give the lines of the table; the last column compares with the network as trained."""
    names = list(next(iter(rows.values())))
    first = rows["as trained"]["side by side"]
    return [
        "milliseconds per image, median; stage and batch size; side by side: a batch in every lane",
        f"{'step':<22}" + "".join(f"{name:>13}" for name in names) + f"{'times faster':>13}",
        *(
            f"{step:<22}"
            + "".join(f"{row[name]:13.1f}" for name in names)
            + f"{first / row['side by side']:13.2f}"
            for step, row in rows.items()
        ),
    ]


if __name__ == "__main__":
    main()
