"""The verb ``score``: captions of any origin against the references of a token file."""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

from trainer.errors import DataError
from trainer.scoring import score
from trainer.textfiles import numbered_lines, read_captions, read_list
from trainer.tutorial import tutorial_score


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``score``."""
    parser.add_argument(
        "captions",
        type=Path,
        metavar="CAPTIONS.jsonl",
        help='one {"image": NAME, "caption": TEXT} per line',
    )
    parser.add_argument(
        "--references",
        type=Path,
        required=True,
        metavar="TOKEN_FILE",
        help="lines image.jpg#n<TAB>caption, like Flickr8k.token.txt",
    )
    parser.add_argument(
        "--images",
        type=Path,
        metavar="LIST",
        help="a list of image names that the captions must cover exactly, "
        "like Flickr_8k.devImages.txt",
    )
    add_rules(parser)


def add_rules(parser: argparse.ArgumentParser) -> None:
    """Declare ``--rules``."""
    parser.add_argument(
        "--rules",
        choices=["ours", "tutorial"],
        default="ours",
        help="tutorial adds a second table, by the rules of the Keras tutorial",
    )


def run(args: argparse.Namespace) -> int:
    """Print the score table and give exit status 0.

    Raises:
        DataError: a file is missing or malformed, or an image has no references.
        ScoringError: captions and list name different images.
    """
    candidates = read_candidates(args.captions)
    names = candidates if args.images is None else read_list(args.images)
    references = _references(args.references, names)
    print(score(candidates, references).table())
    if args.rules == "tutorial":
        print("\n" + tutorial_score(candidates, references).table())
    return 0


def read_candidates(path: Path) -> dict[str, str]:
    """Read one caption per image from JSON lines; keys other than image and caption are ignored.

    Raises:
        DataError: the file is missing or empty, a line is malformed, or an image is repeated.
    """
    candidates: dict[str, str] = {}
    for number, line in numbered_lines(path):
        image, caption = _candidate(path, number, line)
        if image in candidates:
            raise DataError(
                f"{path} line {number}: {image} has a caption already, expected one per image: "
                "remove one of the two lines"
            )
        candidates[image] = caption
    return candidates


def _candidate(path: Path, number: int, line: str) -> tuple[str, str]:
    match _json(line):
        case {"image": str(image), "caption": str(caption)}:
            return image, caption
    raise DataError(
        f'{path} line {number}: expected {{"image": NAME, "caption": TEXT}}, got {line[:80]!r}: '
        "write one such JSON object per line"
    )


def _json(line: str) -> object:
    try:
        value: object = json.loads(line)
    except json.JSONDecodeError:
        return None
    return value


def _references(path: Path, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    captions = read_captions(path)
    absent = sorted(name for name in names if name not in captions)
    if absent:
        raise DataError(
            f"{path} expects references for every image, has none for {len(absent)}, first "
            f"{absent[0]}: use the token file that belongs to the captions"
        )
    return {name: captions[name] for name in names}
