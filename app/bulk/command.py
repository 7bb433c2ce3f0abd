"""The verb `bulk`: its plan, its run here or on a cluster, and what it tells."""

import argparse
from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Any

from app.bulk import on_ray
from app.bulk.finding import find
from app.bulk.on_ray import NoRay
from app.bulk.places import absolute, require_pyarrow
from app.bulk.plan import PlannedPart, parts_of
from app.bulk.progress import progress
from app.bulk.work import Done, Job
from app.captioner.errors import CheckpointError
from app.files.arguments import presentation
from app.files.outputs import complain
from app.loading import CheckpointStore
from app.settings import Settings


def run(options: argparse.Namespace, settings: Settings) -> int:
    """Caption a collection; give the exit code: 0 when each photo has a row, else 1."""
    try:
        if options.ray is not None:
            on_ray.check_library()
        if options.format == "parquet":
            require_pyarrow("--format parquet")
        job = _job(options, settings)
        _plan(job, options)
        return _run(job, options)
    except (CheckpointError, NoRay, ValueError, OSError) as error:
        complain(error)
        return 1


def _job(options: argparse.Namespace, settings: Settings) -> Job:
    checkpoint = CheckpointStore(settings).find().absolute()
    there = {"checkpoint": checkpoint, "checkpoints": ()}  # a worker has another folder
    return Job(
        settings.model_copy(update=there),
        absolute(options.output),
        options.format,
        options.n_best,
        options.tags,
        presentation(options, settings),
    )


def _plan(job: Job, options: argparse.Namespace) -> None:
    """Make the plan, or check that the one that is there is ours.

    Raises:
        ValueError: It is another's, or a source leads nowhere.
        OSError: A source or the output cannot be read or written.
    """
    plan, described = job.plan(), _described(job, options)
    if plan.exists():
        plan.check(described)
        return
    parts = parts_of(
        find(options.sources), rows_per_part=options.rows_per_file, column=options.column
    )
    plan.write(described, parts)


def _described(job: Job, options: argparse.Namespace) -> dict[str, Any]:
    """Say what all runs with one output must agree on."""
    return {
        "sources": [absolute(source) for source in options.sources],
        "checkpoint": "/".join(job.settings.checkpoint.parts[-2:]),
        "format": job.form,
        "n-best": job.n_best,
        "tags": job.tags,
        "style": job.how.style,
        "neutral": job.how.neutral,
        "min-confidence": job.how.min_confidence,
        "column": options.column,
        "rows-per-file": options.rows_per_file,
    }


def _run(job: Job, options: argparse.Namespace) -> int:
    """Caption what no earlier run has done.

    Raises:
        CheckpointError: The network cannot be loaded.
        NoRay: The cluster cannot be used.
        OSError: The output cannot be read or written.
    """
    before = job.shards().done()
    left = [part for part in job.plan().parts() if part.number not in before]
    rows = errors = failed = 0
    if left:
        with progress(_total(left)) as tell, closing(_done(job, left, options)) as done:
            for each in done:
                rows, errors = rows + each.rows, errors + each.errors
                tell(each.rows, each.errors)
                if each.failure:
                    failed += 1
                    complain(f"{each.failure}: left to a later run with the same command")
    print(
        f"{rows} photos, {errors} of them with an error; {job.output} has "
        f"{len(before) + len(left) - failed} of {len(before) + len(left)} files"
    )
    return 1 if failed else 0


def _done(
    job: Job, left: Sequence[PlannedPart], options: argparse.Namespace
) -> Generator[Done, None, None]:
    if options.ray is not None:
        return on_ray.caption(job, left, address=options.ray, workers=options.workers)
    return job.caption(iter(left), job.captioner())


def _total(parts: Sequence[PlannedPart]) -> int | None:
    rows = [part.rows for part in parts]
    return None if None in rows else sum(each or 0 for each in rows)
