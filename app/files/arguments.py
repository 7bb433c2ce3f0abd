"""The arguments of the verb `caption`; imports nothing heavy, for every verb reads them."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from app.captioner.presentation import Presentation
    from app.settings import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    parser.add_argument(
        "photos", nargs="+", metavar="PATH", help="files, folders, patterns, or - for stdin"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    add_telling(parser)
    parser.add_argument("--url", help="use a running service, with the first of CAPTION_API_KEYS")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help=".jsonl or .csv; a later run adds the rest"
    )
    parser.add_argument(
        "--attention", type=Path, metavar="PNG", help="of one photo: draw where each word looked"
    )
    parser.add_argument(
        "--format",
        choices=("vtt", "srt", "json"),
        help="describe a clip, or a folder of frames, shot by shot: as a track, or as JSON",
    )
    parser.add_argument(
        "--fps", type=_rate, default=2.0, metavar="N", help="frames of a clip looked at in a second"
    )
    parser.add_argument("--sidecar", action="store_true", help="write photo.jpg.txt beside each")
    parser.add_argument(
        "--write-metadata", action="store_true", help="write XMP, EXIF and IPTC descriptions"
    )


def add_telling(parser: argparse.ArgumentParser) -> None:
    """Declare how captions are told."""
    parser.add_argument("--n-best", type=count, default=1, metavar="N", help="captions each")
    parser.add_argument(
        "--min-confidence", type=_share, metavar="P", help="withhold captions below it, 0 to 1"
    )
    parser.add_argument("--neutral", action="store_true", help="say person, not man or woman")
    parser.add_argument("--style", choices=("sentence", "alt"), default="sentence")
    parser.add_argument("--tags", action="store_true", help="what the photos may show")


def presentation(options: argparse.Namespace, settings: "Settings") -> "Presentation":
    """Read what `add_telling` declared."""
    from app.captioner.presentation import Presentation  # noqa: PLC0415 - brings numpy

    return Presentation(
        neutral=options.neutral,
        style=options.style,
        min_confidence=min_confidence(options, settings),
    )


def min_confidence(options: argparse.Namespace, settings: "Settings") -> float | None:
    """Give the least confidence: of the command line, else of the settings."""
    given: float | None = options.min_confidence
    return settings.min_confidence if given is None else given


def count(text: str) -> int:
    """Read a number of things.

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text}")
    return int(text)


def _rate(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= 30:
        raise argparse.ArgumentTypeError(f"expected a number above 0, at most 30, got {text}")
    return number


def _share(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text}")
    return number
