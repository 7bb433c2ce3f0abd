"""What became of one photo, whoever captioned it."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

STDIN = "-"


@dataclass(frozen=True)
class Source:
    """A photo: a file, or what came on standard input.

    Attributes:
        name: As it is told to the user.
        path: None for standard input.
        data: Of standard input.
    """

    name: str
    path: Path | None
    data: bytes = b""

    def read(self) -> bytes:
        """Give its bytes.

        Raises:
            OSError: The file cannot be read.
        """
        return self.data if self.path is None else self.path.read_bytes()


@dataclass(frozen=True)
class Candidate:
    """One caption: its text, its log-probability in nats, and that with length normalisation.

    ``confidence`` is the probability that it is right, None where the checkpoint cannot tell.
    """

    caption: str
    log_prob: float
    score: float
    confidence: float | None = None


@dataclass(frozen=True)
class Outcome:
    """Candidates, best first; or what is wrong with the photo, and no candidates.

    ``withheld`` says why the caption is not told, and ``tags`` what the photo may show, as labels
    with probabilities; None where the checkpoint has no classes. ``warning`` is what to know about
    the captions.
    """

    source: Source
    candidates: tuple[Candidate, ...]
    error: str = ""
    withheld: str | None = None
    tags: tuple[tuple[str, float], ...] | None = None
    warning: str | None = None

    @property
    def caption(self) -> str | None:
        """Give the best caption, None where it is withheld."""
        return None if self.withheld else self.candidates[0].caption


CaptionAll = Callable[[Iterable[Source]], Iterator[Outcome]]
"""Captions photos in order, several at once."""


def reason(error: Exception) -> str:
    """Say in one line what is wrong with a photo."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
