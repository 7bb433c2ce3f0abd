"""Where captions go: lines on the screen, a table that can be resumed, the files beside photos."""

import csv
import io
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from app.files import metadata
from app.files.outcome import Outcome

Write = Callable[[Outcome], None]
"""Takes a photo that was captioned.

Raises:
    metadata.NoMetadata: There is no place for the caption.
    OSError: A file cannot be written.
"""

_COLUMNS = ("image", "rank", "caption", "log_prob", "score")


def lines(outcome: Outcome) -> None:
    """Print ``photo: caption`` for each candidate."""
    for candidate in outcome.candidates:
        print(f"{outcome.source.name}: {candidate.caption}", flush=True)


def json_lines(outcome: Outcome) -> None:
    """Print one JSON object."""
    print(_as_json(outcome), flush=True)


def _as_json(outcome: Outcome) -> str:
    best = outcome.candidates[0]
    line: dict[str, Any] = {
        "image": outcome.source.name,
        "caption": best.caption,
        "log_prob": best.log_prob,
        "candidates": [vars(candidate) for candidate in outcome.candidates],
    }
    return json.dumps(line, ensure_ascii=False)


def _as_csv(outcome: Outcome) -> str:
    told = enumerate(outcome.candidates, 1)
    return _row(
        *(
            (outcome.source.name, rank, each.caption, each.log_prob, each.score)
            for rank, each in told
        )
    )


def _row(*rows: Sequence[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


class Table:
    """A file of captions, JSON lines or CSV by its name, to which a later run adds the rest.

    Args:
        path: It ends in ``.jsonl`` or ``.csv``.

    Raises:
        ValueError: It ends in something else.
        OSError: It cannot be written.
    """

    def __init__(self, path: Path) -> None:
        if path.suffix not in {".jsonl", ".csv"}:
            raise ValueError(f"--output {path}: expected a name that ends in .jsonl or .csv")
        self._is_csv = path.suffix == ".csv"
        self._file = path.open("a+", encoding="utf-8", errors="surrogateescape", newline="")
        self.done = self._resume()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def write(self, outcome: Outcome) -> None:
        """Add a photo, at once: whoever stops the run keeps what it has done."""
        text = _as_csv(outcome) if self._is_csv else _as_json(outcome) + "\n"
        self._file.write(text)
        self._file.flush()

    def _resume(self) -> frozenset[str]:
        """Find what is done; a last line that was not finished is cut off."""
        self._file.seek(0)
        text = self._file.read()
        whole = text[: text.rfind("\n") + 1]
        if len(whole) < len(text):
            self._file.truncate(len(whole.encode("utf-8", "surrogateescape")))
        if not self._is_csv:
            return frozenset(json.loads(line)["image"] for line in whole.splitlines() if line)
        if not whole:
            self._file.write(_row(_COLUMNS))
        return frozenset(row["image"] for row in csv.DictReader(io.StringIO(whole)))


def sidecar(outcome: Outcome) -> None:
    """Write ``photo.jpg.txt`` beside ``photo.jpg``."""
    if outcome.source.path is not None:
        photo = outcome.source.path
        text = outcome.candidates[0].caption + "\n"
        photo.with_name(photo.name + ".txt").write_text(text, encoding="utf-8")


def into_photo(outcome: Outcome) -> None:
    """Write the caption into the photo's metadata."""
    if outcome.source.path is not None:
        metadata.write(outcome.source.path, outcome.candidates[0].caption)


def complain(error: object) -> None:
    """Tell the user what went wrong."""
    print(f"caption-service: {error}", file=sys.stderr, flush=True)
