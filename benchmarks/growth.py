"""What does a caption cost as the work grows? One question at a time, all else held.

batch     more images in a batch
size      larger photos
beam      a wider beam
length    longer captions: every caption is forced to have so many words
clients   more clients of the service, which all ask again once they have their answer

Run: .venv/bin/python benchmarks/growth.py photo.jpg [more.jpg ...] [--plots FOLDER]
"""

import argparse
import importlib.util
import io
import os
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import load
import result
from app.captioner import checkpoint
from app.captioner.checkpoint import Checkpoint
from app.captioner.engines.engine import Precision
from app.captioner.image.decode import Pixels
from app.captioner.pipeline import Captioner
from app.settings import PROJECT_ROOT, Settings
from limit import (
    MAX_PIXELS,
    Stages,
    Step,
    best_of,
    captioning,
    filled,
    from_bytes,
    medians_ms,
)
from servers import (
    MAX_BATCH,
    OURS,
    THREADS,
    TROUBLE,
    Conditions,
    Contender,
    absolute,
    add_precision,
    check_captions,
    serving,
    stop_servers_when_ended,
    tell,
)

Rows = dict[int, dict[str, float]]
Steps = dict[int, Step]
PHOTO_PX = 640
TIMEOUT_S = 60.0
SHARED = ("threads", "precision", "batch", "repeats", "rounds", "seconds")
COLOURS = ("#0072b2", "#d55e00", "#009e73")  # told apart by colour-blind readers too
MARKERS = ("o", "s", "^")


class Chart(NamedTuple):
    """One plot: its unit, and the columns it shows."""

    unit: str
    columns: tuple[str, ...]


class Question(NamedTuple):
    """What grows, how it is drawn, and whether it grows by factors."""

    grows: str
    charts: tuple[Chart, ...]
    by_factors: bool = False


_IMAGES = Chart("images/s", ("images/s",))
_SEARCH = Chart("ms per image", ("search ms", "whole ms"))
QUESTIONS = {
    "batch": Question(
        "images in a batch",
        (Chart("ms per image", ("encode ms", "search ms", "whole ms")), _IMAGES),
        by_factors=True,
    ),
    "size": Question(
        "long side of the photo, px",
        (Chart("ms per image", ("decode ms", "whole ms")), _IMAGES),
        by_factors=True,
    ),
    "beam": Question("beam width", (_SEARCH, _IMAGES)),
    "length": Question("words of every caption", (_SEARCH, _IMAGES)),
    "clients": Question(
        "clients",
        (Chart("photos/s", ("photos/s",)), Chart("latency, ms", ("p50 ms", "p99 ms"))),
        by_factors=True,
    ),
}


# --- without a server ---------------------------------------------------------------------------


def by_batch(captioner: Captioner, images: Sequence[Pixels], args: argparse.Namespace) -> Rows:
    """Let the batch grow."""
    steps = {batch: captioning(captioner, filled(images, batch)) for batch in args.batches}
    return _measured(steps, args.repeats)


def by_size(captioner: Captioner, paths: Sequence[Path], args: argparse.Namespace) -> Rows:
    """Let the photos grow; each is read and captioned alone."""
    photos = {size_px: load.photos(paths, size_px) for size_px in args.sizes}
    steps = {size_px: one_by_one(captioner, each) for size_px, each in photos.items()}
    return _measured(steps, args.repeats)


def one_by_one(captioner: Captioner, photos: Sequence[bytes]) -> Step:
    """Time every stage of photos that are read and captioned one after the other."""
    each = [from_bytes(captioner, [photo]) for photo in photos]

    def stages() -> Stages:
        runs = [step.run() for step in each]
        return {name: sum(run[name] for run in runs) for name in runs[0]}

    return Step(stages, len(photos))


def by_beam(loaded: Checkpoint, images: Sequence[Pixels], args: argparse.Namespace) -> Rows:
    """Let the beam grow; the captions are as long as the search likes."""
    return _by_search(loaded, images, {k: {"beam_width": k} for k in args.beams}, args)


def by_length(loaded: Checkpoint, images: Sequence[Pixels], args: argparse.Namespace) -> Rows:
    """Let the captions grow: none may end sooner, none later."""
    changes = {words: {"min_words": words, "max_words": words} for words in args.lengths}
    return _by_search(loaded, images, changes, args)


def _by_search(
    loaded: Checkpoint,
    images: Sequence[Pixels],
    changes: dict[int, dict[str, int]],
    args: argparse.Namespace,
) -> Rows:
    steps: Steps = {}
    words: dict[int, float] = {}
    batch = filled(images, args.batch)
    for grown, change in changes.items():
        captioner = searching(loaded, args.precision, **change)
        steps[grown] = captioning(captioner, batch)
        said = captioner.caption(images).captions
        words[grown] = statistics.mean(len(best.words) for best, *_ in said)
    rows = _measured(steps, args.repeats)
    return {grown: {**row, "words": words[grown]} for grown, row in rows.items()}


def searching(loaded: Checkpoint, precision: Precision, **changes: int) -> Captioner:
    """Give a captioner whose search differs from the checkpoint's own."""
    search = replace(loaded.manifest.search, **changes)
    manifest = loaded.manifest.model_copy(update={"search": search})
    return Captioner.of(loaded.with_manifest(manifest), precision=precision)


def _measured(steps: Steps, repeats: int) -> Rows:
    """Run every step once for its first-time work, then let all of them take turns."""
    for step in steps.values():
        step.run()
    rows = {
        grown: {f"{name} ms": taken_ms for name, taken_ms in row.items()}
        for grown, row in medians_ms(steps, repeats).items()
    }
    return {grown: {**row, "images/s": 1e3 / row["whole ms"]} for grown, row in rows.items()}


# --- with the service ---------------------------------------------------------------------------


def by_clients(captioner: Captioner, photos: Sequence[bytes], args: argparse.Namespace) -> Rows:
    """Start our service and let more and more clients ask; the numbers of clients take turns.

    Raises:
        Unavailable: it does not start, or says something else than the captioner.
    """
    expected = [best_of(captioner, photo) for photo in photos]
    conditions = Conditions(
        args.checkpoint, args.threads, TIMEOUT_S, args.start_s, Path(), args.precision
    )
    seen: dict[int, list[load.Outcome]] = {clients: [] for clients in args.clients}
    with serving(Contender(OURS, "captioner"), conditions) as server:
        check_captions(server, photos, expected)
        posts, most = server.posts(photos), max(args.clients)
        load.closed_loop(server.port, posts, concurrency=most, seconds=args.warm_up_s)
        for _ in range(args.rounds):
            for clients in args.clients:
                seen[clients].append(
                    load.closed_loop(server.port, posts, concurrency=clients, seconds=args.seconds)
                )
    return {clients: middle(outcomes) for clients, outcomes in seen.items()}


def middle(outcomes: Sequence[load.Outcome]) -> dict[str, float]:
    """Give the medians over the rounds, and all errors."""
    return {
        "photos/s": load.median([each.per_s for each in outcomes]),
        "p50 ms": load.median([each.p50_ms for each in outcomes]),
        "p99 ms": load.median([each.p99_ms for each in outcomes]),
        "errors": sum(each.errors for each in outcomes),
    }


# --- table and plots ----------------------------------------------------------------------------


def table_of(question: Question, rows: Rows) -> list[str]:
    """Give the lines of one question's table."""
    columns = list(next(iter(rows.values()), {}))
    table = ["", f"{question.grows:<28}" + "".join(f"{column:>11}" for column in columns)]
    for grown, row in rows.items():
        table.append(f"{grown:<28}" + "".join(f"{row[column]:11.1f}" for column in columns))
    return table


def svg_of(question: Question, rows: Rows) -> bytes:
    """Draw one question, one chart beside the other, on white."""
    from matplotlib import rc_context  # noqa: PLC0415 - only plots need it
    from matplotlib.figure import Figure  # noqa: PLC0415

    file = io.BytesIO()
    # text as text keeps the file small; the salt and no date keep it the same from run to run
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": question.grows}):
        figure = Figure(figsize=(8, 3), layout="constrained", facecolor="white")
        for axes, chart in zip(
            figure.subplots(1, len(question.charts)), question.charts, strict=True
        ):
            _draw(axes, question, chart, rows)
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def _draw(axes: Any, question: Question, chart: Chart, rows: Rows) -> None:
    for column, colour, marker in zip(chart.columns, COLOURS, MARKERS, strict=False):
        heights = [row[column] for row in rows.values()]
        axes.plot(list(rows), heights, color=colour, marker=marker, label=column)
    if question.by_factors:
        axes.set_xscale("log", base=2)
    axes.set_xticks(list(rows), [str(grown) for grown in rows])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set(xlabel=question.grows, ylabel=chart.unit)
    axes.grid(alpha=0.3)
    if len(chart.columns) > 1:
        axes.legend()


def write_plots(folder: Path, rows: dict[str, Rows]) -> None:
    """Write ``growth-<question>.svg`` for every question that was answered."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, answered in rows.items():
        (folder / f"growth-{name}.svg").write_bytes(svg_of(QUESTIONS[name], answered))


# --- the program --------------------------------------------------------------------------------


def answers(args: argparse.Namespace) -> tuple[dict[str, Rows], str]:
    """Answer each question; say why there is none about clients where the service failed."""
    loaded = checkpoint.load(args.checkpoint)
    captioner = Captioner.of(loaded, precision=args.precision)
    photos = load.photos(args.photos, PHOTO_PX)
    images = [captioner.read(photo, max_pixels=MAX_PIXELS) for photo in photos]
    asked = {
        "batch": lambda: by_batch(captioner, images, args),
        "size": lambda: by_size(captioner, args.photos, args),
        "beam": lambda: by_beam(loaded, images, args),
        "length": lambda: by_length(loaded, images, args),
    }
    rows: dict[str, Rows] = {}
    for name in (name for name in asked if name in args.questions):
        tell(QUESTIONS[name].grows)
        rows[name] = asked[name]()
    if "clients" not in args.questions:
        return rows, ""
    tell(QUESTIONS["clients"].grows)
    try:
        return {**rows, "clients": by_clients(captioner, photos, args)}, ""
    except TROUBLE as reason:
        return rows, str(reason) or type(reason).__name__


def main() -> None:
    """Print a table for each question, then one JSON line."""
    args = _arguments()
    stop_servers_when_ended()
    rows, reason = answers(args)
    if args.plots:
        write_plots(args.plots, rows)
    about = f"one core, {args.precision}; beam and length in batches of {args.batch}"
    table = [
        f"medians of {args.repeats}; {about}",
        f"clients: {args.threads} cores, {args.rounds} rounds of {args.seconds:g} s",
    ]
    for name, answered in rows.items():
        table += table_of(QUESTIONS[name], answered)
    line = {
        "benchmark": "growth",
        **{name: getattr(args, name) for name in SHARED},
        "load": load.generator(),
        "rows": rows,
        "unavailable": reason,
    }
    table += ["", f"clients: {reason}"] if reason else []
    result.report(table, load.without_nan(line), args.output)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", type=Path, nargs="*", metavar="PHOTO", help="default: drawn")
    parser.add_argument("--questions", nargs="+", choices=QUESTIONS, default=list(QUESTIONS))
    parser.add_argument("--checkpoint", type=absolute, default=PROJECT_ROOT / Settings().checkpoint)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--sizes", type=int, nargs="+", default=[320, 640, 1280, 2560, 4000])
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 2, 3, 4, 6, 8])
    parser.add_argument("--lengths", type=int, nargs="+", default=[4, 8, 12, 16, 20])
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--batch", type=int, default=MAX_BATCH, help="of beam and length")
    parser.add_argument("--repeats", type=int, default=10, help="without a server")
    parser.add_argument("--rounds", type=int, default=3, help="of the clients")
    parser.add_argument("--seconds", type=float, default=10.0, help="of clients, each round")
    parser.add_argument("--warm-up-s", type=float, default=5.0, help="of the service")
    parser.add_argument("--start-s", type=float, default=300.0, help="until the service answers")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help=THREADS)
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="draw an SVG per question")
    add_precision(parser)
    result.add_output(parser)
    args = parser.parse_args()
    if args.plots and not importlib.util.find_spec("matplotlib"):
        parser.error("--plots needs matplotlib: pip install --editable '.[bench]'")
    return args


if __name__ == "__main__":
    main()
