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

_COLUMNS = ("image", "rank", "caption", "log_prob", "score", "confidence")


def lines(outcome: Outcome) -> None:
    """Print ``photo: caption`` for each candidate, or why there is none."""
    name = printable(outcome.source.name)
    if outcome.withheld:
        shows = f"; {_may_show(outcome)}" if outcome.tags else ""
        print(f"{name}: ({outcome.withheld.replace('_', ' ')}{shows})", flush=True)
        return
    for candidate in outcome.candidates:
        print(f"{name}: {candidate.caption}", flush=True)


def lines_with_tags(outcome: Outcome) -> None:
    """Print what `lines` prints, and what the photo may show."""
    lines(outcome)
    if outcome.tags and not outcome.withheld:
        print(f"{printable(outcome.source.name)}: {_may_show(outcome)}", flush=True)


def _may_show(outcome: Outcome) -> str:
    return "may show: " + ", ".join(label for label, _ in outcome.tags or ())


def json_lines(outcome: Outcome) -> None:
    """Print one JSON object, in UTF-8 or with escapes for a terminal that shows less."""
    is_utf_8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    print(_as_json(outcome, ensure_ascii=not is_utf_8), flush=True)


def _as_json(outcome: Outcome, *, ensure_ascii: bool = False) -> str:
    best = outcome.candidates[0]
    line: dict[str, Any] = {
        "image": outcome.source.name,
        "caption": outcome.caption,
        "log_prob": best.log_prob,
        "confidence": best.confidence,
        **({"withheld": outcome.withheld} if outcome.withheld else {}),
        **({"tags": _tags(outcome)} if outcome.tags is not None else {}),
        **({"warning": outcome.warning} if outcome.warning else {}),
        "candidates": [vars(candidate) for candidate in outcome.candidates],
    }
    return json.dumps(line, ensure_ascii=ensure_ascii)


def _tags(outcome: Outcome) -> list[dict[str, Any]]:
    return [{"label": label, "probability": share} for label, share in outcome.tags or ()]


def _as_csv(outcome: Outcome) -> str:
    told = enumerate(outcome.candidates, 1)
    return _row(
        *(
            (
                outcome.source.name,
                rank,
                "" if outcome.withheld else each.caption,
                each.log_prob,
                each.score,
                each.confidence,
            )
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
    if outcome.source.path is not None and outcome.caption is not None:
        photo = outcome.source.path
        text = outcome.caption + "\n"
        photo.with_name(photo.name + ".txt").write_text(text, encoding="utf-8")


def into_photo(outcome: Outcome) -> None:
    """Write the caption into the photo's metadata."""
    if outcome.source.path is not None and outcome.caption is not None:
        metadata.write(outcome.source.path, outcome.caption)


def printable(name: str) -> str:
    """Give a name that moves no cursor: what cannot be printed is escaped."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in name)


def complain(error: object) -> None:
    """Tell the user what went wrong."""
    print(f"caption-service: {printable(str(error))}", file=sys.stderr, flush=True)
