"""What does `bulk` reach of the pipeline's limit, and does a kill cost or double a row?

Photos are copies of one, each with noise of its own, a third each as files, in tar files and in
Parquet. With --rounds the pipeline without reading or writing and `bulk` take turns; with --kill
a run is killed once half is done and begun again; --ray compares whole commands, with their start;
--memory tells whether it grows.

Run: .venv/bin/python benchmarks/bulk.py photo.jpg --photos 3000 --rounds 5
     .venv/bin/python benchmarks/bulk.py photo.jpg --photos 20000 --kill
"""

import argparse
import io
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import dataset, parquet

import result
from app.bulk.finding import find
from app.bulk.plan import parts_of
from app.bulk.work import Job
from app.captioner.pipeline import Captioner
from app.captioner.presentation import Presentation
from app.files.local import LocalCaptioner
from app.loading import load_captioner
from app.settings import Settings
from limit import whole_per_s
from meter import Meter

ROWS = 200  # of a file of captions, of a tar file, and of a row group
_BATCH = 8


def copies(photo: Path, count: int, side_px: int) -> list[bytes]:
    """Draw copies of a photo that differ in every pixel, as JPEG."""
    image = Image.open(photo).convert("RGB")
    image.thumbnail((side_px, side_px))
    pixels, random = np.asarray(image).astype(np.int16), np.random.default_rng(0)
    return [_copy(pixels, random) for _ in range(count)]


def _copy(pixels: Any, random: np.random.Generator) -> bytes:
    noise = random.integers(-12, 13, pixels.shape, np.int16)
    file = io.BytesIO()
    Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
    return file.getvalue()


def lay_out(photos: Sequence[bytes], place: Path) -> None:
    """Write a third of the photos each as files, into tar files, and into Parquet."""
    third = len(photos) // 3
    (place / "files").mkdir(parents=True)
    for n, data in enumerate(photos[:third]):
        (place / "files" / f"{n:06}.jpg").write_bytes(data)
    for first in range(third, 2 * third, ROWS):
        with tarfile.open(place / f"{first:06}.tar", "w") as archive:
            for n in range(first, min(first + ROWS, 2 * third)):
                member = tarfile.TarInfo(f"{n:06}.jpg")
                member.size = len(photos[n])
                archive.addfile(member, io.BytesIO(photos[n]))
    table = pa.table({"image": photos[2 * third :]})
    parquet.write_table(table, place / "rest.parquet", row_group_size=ROWS)


def bulk_per_s(settings: Settings, captioner: Captioner, source: Path, output: Path) -> float:
    """Give the photos a second of `bulk` from the source to the output, the network loaded."""
    shutil.rmtree(output, ignore_errors=True)
    job = Job(settings, str(output), "parquet", 1, tags=False, how=Presentation())
    caption_all = LocalCaptioner(
        captioner, max_batch=_BATCH, max_pixels=settings.max_pixels, n_best=1, how=job.how
    )
    began_s = time.perf_counter()
    job.plan().write({}, parts_of(find([str(source)]), rows_per_part=ROWS))
    done = sum(each.rows for each in job.caption(job.plan().parts(), caption_all))
    return done / (time.perf_counter() - began_s)


def shares(photos: Sequence[bytes], place: Path, rounds: int) -> list[tuple[float, float]]:
    """Let the limit and `bulk` take turns; a limit stands on either side of each `bulk`."""
    settings = Settings(device="cpu")
    captioner = load_captioner(settings)
    captioner.warm_up(range(1, _BATCH + 1))
    seconds = len(photos) / whole_per_s(captioner, photos, _BATCH, 2.0) / 2
    limit = partial(whole_per_s, captioner, photos, _BATCH, seconds)
    before, found = limit(), []
    for _ in range(rounds):
        reached = bulk_per_s(settings, captioner, place / "photos", place / "captions")
        after = limit()
        found.append(((before + after) / 2, reached))
        before = after
    return found


def command(place: Path, *more: str) -> subprocess.Popen[bytes]:
    """Start `bulk` on the photos."""
    options = ["--output", str(place / "captions"), "--rows-per-file", str(ROWS), *more]
    return subprocess.Popen(
        [sys.executable, "-m", "app.cli", "bulk", str(place / "photos"), *options],
        stdout=subprocess.DEVNULL,
    )


def killed_and_completed(place: Path, count: int, more: Sequence[str]) -> dict[str, Any]:
    """Kill a run once half of its files are there, run it again, and count the rows."""
    output, half = place / "captions", count // ROWS // 2
    began_s = time.perf_counter()
    first = command(place, *more)
    while len(list(output.glob("part-*"))) < half and first.poll() is None:
        time.sleep(0.05)
    first.kill()
    first.wait()
    killed_s = time.perf_counter() - began_s
    at_kill = dataset.dataset(output, format="parquet").count_rows()
    code = command(place, *more).wait()
    rows = dataset.dataset(output, format="parquet").to_table()
    seen = Counter(rows["image"].to_pylist())
    return {
        "photos": count,
        "rows at the kill": at_kill,
        "seconds until it": killed_s,
        "rows": rows.num_rows,
        "different": len(seen),
        "with a caption": rows.num_rows - rows["caption"].null_count,
        "exit code": code,
        "seconds": time.perf_counter() - began_s,
    }


def timed_s(place: Path, more: Sequence[str]) -> float:
    """Give the seconds of the command on an output that is not there yet, its start included."""
    shutil.rmtree(place / "captions", ignore_errors=True)
    began_s = time.perf_counter()
    if command(place, *more).wait():
        raise SystemExit("bulk failed")
    return time.perf_counter() - began_s


def memory_mb(place: Path, count: int) -> list[float]:
    """Give the most memory of the command and its processes in each quarter of the files, MiB."""
    shutil.rmtree(place / "captions", ignore_errors=True)
    files, quarters = -(-count // ROWS), [0.0] * 4
    running = command(place)
    meter = Meter(running.pid)
    while running.poll() is None:
        done = len(list((place / "captions").glob("part-*")))
        quarter = min(4 * done // files, 3)
        quarters[quarter] = max(quarters[quarter], meter.memory_bytes() / 2**20)
        time.sleep(0.5)
    if running.returncode:
        raise SystemExit("bulk failed")
    return quarters


def by_command(place: Path, count: int) -> dict[str, float]:
    """Give photos a second of the whole command, here and on Ray with one and two workers."""
    ways = {
        "here": (),
        "ray, 1 worker": ("--ray", "local", "--workers", "1"),
        "ray, 2 workers": ("--ray", "local", "--workers", "2"),
    }
    return {name: count / timed_s(place, more) for name, more in ways.items()}


def main() -> None:
    """Print the table, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photo", type=Path)
    parser.add_argument("--photos", type=int, default=3000)
    parser.add_argument("--side-px", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=0, help="of limit and bulk in turns")
    parser.add_argument("--kill", action="store_true")
    parser.add_argument("--ray", action="store_true", help="whole commands, here and on Ray")
    parser.add_argument("--memory", action="store_true", help="of the command, by quarter")
    result.add_output(parser)
    args = parser.parse_args()
    line: dict[str, Any] = {"benchmark": "bulk", "side_px": args.side_px}
    table: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        photos = copies(args.photo, args.photos, args.side_px)
        lay_out(photos, place / "photos")
        if args.rounds:
            found = shares(photos, place, args.rounds)
            line["rounds"] = found
            table += rounds_table(found)
            shutil.rmtree(place / "captions")
        if args.kill:
            line["kill"] = killed_and_completed(place, len(photos), ())
            table += [f"{name:20}{value:>10.0f}" for name, value in line["kill"].items()]
        if args.ray:
            line["commands"] = by_command(place, len(photos))
            table += [f"{name:20}{per_s:>10.1f}" for name, per_s in line["commands"].items()]
        if args.memory:
            line["memory_mb"] = memory_mb(place, len(photos))
            table += [f"MiB by quarter: {' '.join(f'{mb:.0f}' for mb in line['memory_mb'])}"]
    result.report(table, line, args.output)


def rounds_table(found: Sequence[tuple[float, float]]) -> list[str]:
    """Give the lines of the rounds."""
    share = statistics.median(reached / limit for limit, reached in found)
    return [
        f"{'limit/s':>9}{'bulk/s':>9}{'share':>8}",
        *(f"{limit:9.1f}{reached:9.1f}{reached / limit:8.2f}" for limit, reached in found),
        f"{'median':>18}{share:8.2f}",
    ]


if __name__ == "__main__":
    main()
