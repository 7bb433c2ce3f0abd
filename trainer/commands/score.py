"""The verb ``score``: captions of any origin against the references people wrote."""

import argparse
from pathlib import Path

from app.captioner.tokenisers import LOWER_ALPHANUMERIC, TOKENISERS, fitting
from trainer.commands.arguments import add_rules
from trainer.data.candidates import read_candidates
from trainer.data.text_files import read_list
from trainer.importing.references import read_references
from trainer.scoring.keras_tutorial import tutorial_score
from trainer.scoring.scores import score


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``score``."""
    parser.add_argument(
        "captions",
        type=Path,
        metavar="CAPTIONS",
        help='one {"image": NAME, "caption": TEXT} per line, or COCO results',
    )
    parser.add_argument(
        "--references",
        type=Path,
        required=True,
        metavar="FILE",
        help="lines image.jpg#n<TAB>caption, like Flickr8k.token.txt, COCO annotations, or another "
        "file that prepare --from reads",
    )
    parser.add_argument(
        "--images",
        type=Path,
        metavar="LIST",
        help="a list of image names that the captions must cover exactly, "
        "like Flickr_8k.devImages.txt",
    )
    parser.add_argument(
        "--tokeniser",
        choices=[*TOKENISERS],
        help=f"{LOWER_ALPHANUMERIC} unless it would cut the words of the references",
    )
    add_rules(parser)


def run(args: argparse.Namespace) -> int:
    """Print the score table and give exit status 0.

    Raises:
        DataError: a file is missing or malformed, or an image has no references.
        ScoringError: captions and list name different images.
    """
    candidates = read_candidates(args.captions)
    names = candidates if args.images is None else read_list(args.images)
    references = read_references(args.references, names)
    texts = (text for of in references.values() for text in of)
    name = args.tokeniser or fitting(texts)
    print(score(candidates, references, tokeniser_name=name).table())
    if args.rules == "tutorial":
        print("\n" + tutorial_score(candidates, references).table())
    return 0
