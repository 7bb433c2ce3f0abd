"""The verb ``convert``: a checkpoint of a version before 0.2.0 -> one that this version loads."""

import argparse
from pathlib import Path

from trainer.commands.arguments import (
    add_calibration,
    calibration_images,
    confidence_fitter,
    dev_scorers,
)
from trainer.publishing.format_1 import load_format_1
from trainer.publishing.publish import publish


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``convert``."""
    parser.add_argument("checkpoint", type=Path, help="a directory <name>/<version>, or <run>/best")
    parser.add_argument("--version", required=True, help="of the new directory")
    parser.add_argument("--store", type=Path, default=Path("model_store"))
    add_calibration(parser)


def run(args: argparse.Namespace) -> int:
    """Convert, and say where."""
    old, card = load_format_1(args.checkpoint)
    about = old.manifest
    card = card.replace(f", version {about.version}\n", f", version {args.version}\n", 1)
    card += f"\n## Conversion\n\nThe weights are those of version {about.version}.\n"
    directory = publish(
        old,
        args.store,
        args.version,
        scores={},
        notes="",
        calibration=calibration_images(args.data, about.image),
        dev_scorers=dev_scorers(args.data),
        fit_confidence=confidence_fitter(args.data) if args.data else None,
        model_card=card,
        degenerate=True,
    )
    print(directory)
    return 0
