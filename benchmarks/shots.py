"""Are the shots of a clip found?

Montages of photos, with cuts, fades, pans and zooms, as videos; for each kind the share of joins
that are found, and of what is found the share that are joins.

Run: .venv/bin/python benchmarks/shots.py FOLDER [--montages 4] [--thresholds .3 .35 .4]
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import montages
import result
from app.captioner.pipeline import Captioner
from app.clips import reading
from app.clips.sampling import DEFAULT_FPS, Frame, Sampling
from app.clips.shots import DEFAULT_THRESHOLD, Look, ShotFinder, histogram
from caption_client.images import images_in
from shipped import PROJECT_ROOT, SHIPPED

PER_MONTAGE = 12
_BATCH = 8


@dataclass
class Seen:
    """The frames of a montage that are looked at, and where its joins are."""

    frames: list[tuple[Frame, Look]]
    joins: list[tuple[float, float]]
    duration_s: float


@dataclass
class Count:
    """What was found of joins."""

    joins: int = 0
    found: int = 0
    said: int = 0

    @property
    def recall(self) -> float:
        """Give the share of joins that are found."""
        return self.found / self.joins if self.joins else 1.0

    @property
    def precision(self) -> float:
        """Give the share of what is found that are joins."""
        return self.found / self.said if self.said else 1.0


def look_at(made: montages.Made, captioner: Captioner, fps: float) -> Seen:
    """Read a montage as the service does."""
    about = captioner.manifest.image
    how = Sampling(
        fps=fps,
        max_frames=10_000,
        max_s=3600,
        max_pixels=10**8,
        max_pixels_per_s=10**10,
        size_px=about.size_px,
        fit=about.fit,
        resampling=about.resampling,
    )
    frames = [each for each in reading.frames(made.clip, how) if isinstance(each, Frame)]
    summaries = [
        summary_W
        for at in range(0, len(frames), _BATCH)
        for summary_W in captioner.summaries([each.pixels for each in frames[at : at + _BATCH]])
    ]
    looks = [
        Look(summary_W, histogram(frame.pixels))
        for frame, summary_W in zip(frames, summaries, strict=True)
    ]
    return Seen(list(zip(frames, looks, strict=True)), made.joins, made.duration_s)


def boundaries(seen: Seen, threshold: float) -> list[float]:
    """Give the moments at which one shot becomes another."""
    finder = ShotFinder(threshold)
    shots = [finder.add(*each) for each in seen.frames]
    return [each.end_s for each in shots if each is not None]


def matched(found: Sequence[float], joins: Sequence[tuple[float, float]], slack_s: float) -> int:
    """Count the joins that were found, each by a moment of its own, in time but for the slack."""
    left = list(found)
    hits = 0
    for begins_s, ends_s in joins:
        near = [at for at in left if begins_s - slack_s <= at <= ends_s + slack_s]
        if near:
            left.remove(near[0])
            hits += 1
    return hits


def count(seen: Sequence[Seen], threshold: float, slack_s: float) -> Count:
    """Compare what is found in some montages with what is there."""
    total = Count()
    for each in seen:
        found = boundaries(each, threshold)
        total.joins += len(each.joins)
        total.said += len(found)
        total.found += matched(found, each.joins, slack_s)
    return total


def montages_of(
    kind: montages.Montage, photos: Sequence[Path], args: argparse.Namespace, captioner: Captioner
) -> list[Seen]:
    """Make and read the montages of a kind, each of other photos."""
    seen = []
    for number in range(args.montages):
        chosen = np.random.default_rng(args.seed + number).permutation(len(photos))[:PER_MONTAGE]
        files = [photos[index].read_bytes() for index in chosen]
        seen.append(look_at(montages.make(files, kind, args.seed + number), captioner, args.fps))
    return seen


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path, help="a folder")
    parser.add_argument("--list", type=Path, help="names of the photos to use, a line each")
    parser.add_argument("--checkpoint", type=Path, default=PROJECT_ROOT / SHIPPED)
    parser.add_argument("--montages", type=int, default=4, help="of each kind")
    parser.add_argument("--fps", type=float, default=DEFAULT_FPS)
    parser.add_argument("--thresholds", type=float, nargs="+", default=[DEFAULT_THRESHOLD])
    parser.add_argument("--seed", type=int, default=0)
    result.add_output(parser)
    args = parser.parse_args(arguments)
    photos = [each for each in images_in(args.photos) if _is_listed(each, args.list)]
    captioner = Captioner.load(args.checkpoint)
    table = [f"{'montages':24}{'threshold':>10}{'joins':>8}{'recall':>8}{'precision':>11}"]
    rows: list[dict[str, Any]] = []
    for name, kind in montages.KINDS.items():
        seen = montages_of(kind, photos, args, captioner)
        for threshold in args.thresholds:
            found = count(seen, threshold, 1 / args.fps)
            table.append(
                f"{name:24}{threshold:10.2f}{found.joins:8}"
                f"{found.recall:8.3f}{found.precision:11.3f}"
            )
            rows.append({"kind": name, "threshold": threshold, **vars(found)})
    line = {"benchmark": "shots", "fps": args.fps, "montages": args.montages, "rows": rows}
    result.report(table, line, args.output)
    return 0


def _is_listed(photo: Path, listed: Path | None) -> bool:
    return listed is None or photo.name in listed.read_text(encoding="utf-8").split()


if __name__ == "__main__":
    sys.exit(main())
