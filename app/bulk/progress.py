"""How far a run is: a bar on a terminal, else a line a minute on stderr."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_EVERY_S = 60.0
Told = Callable[[int, int], None]
"""Takes how many photos more are done, and how many of them tell an error."""


@contextmanager
def progress(total: int | None) -> Iterator[Told]:
    """Show how far a run is.

    Args:
        total: Photos to do, None where it is not known.
    """
    if not sys.stderr.isatty():
        yield _Lines(total)
        return
    from tqdm import tqdm  # noqa: PLC0415

    with tqdm(total=total, unit="photo") as bar:

        def told(rows: int, errors: int) -> None:  # noqa: ARG001 - the end tells of errors
            bar.update(rows)

        yield told


class _Lines:
    def __init__(self, total: int | None) -> None:
        self._of = "" if total is None else f" of {total}"
        self._rows = self._errors = 0
        self._began_s = self._told_s = time.monotonic()

    def __call__(self, rows: int, errors: int) -> None:
        self._rows += rows
        self._errors += errors
        now_s = time.monotonic()
        if now_s - self._told_s >= _EVERY_S:
            self._told_s = now_s
            per_s = self._rows / (now_s - self._began_s)
            print(
                f"{self._rows}{self._of} photos, {per_s:.1f} a second, {self._errors} errors",
                file=sys.stderr,
                flush=True,
            )
