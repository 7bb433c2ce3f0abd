"""The verb ``doctor``: everything that is wrong with a data directory, and what to do."""

import argparse
from pathlib import Path

from trainer.checks.diagnosis import diagnose


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``doctor``."""
    parser.add_argument(
        "data", type=Path, nargs="+", metavar="DATA", help="directories in Flickr8k's layout"
    )
    parser.add_argument("--images", metavar="FOLDER", help="image folder, if of an unusual name")


def run(args: argparse.Namespace) -> int:
    """Examine the directories one after another."""
    return max(diagnose(data, images=args.images) for data in args.data)
