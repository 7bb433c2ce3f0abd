"""The verb ``publish``: a run's best checkpoint -> an immutable directory of the model store."""

import argparse
from pathlib import Path

from app.captioner.model import torch_checkpoint
from trainer.commands.arguments import (
    add_calibration,
    add_search,
    calibration_images,
    confidence_fitter,
    dev_scorers,
    run_checkpoint,
    with_search,
)
from trainer.errors import TrainerError
from trainer.publishing.publish import publish


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``publish``."""
    parser.add_argument(
        "run_directory", type=Path, metavar="RUN", help="what fit wrote, or its best"
    )
    parser.add_argument("--version", required=True, help="of the new directory")
    parser.add_argument("--name", help="of the checkpoint, in place of the recipe's")
    parser.add_argument("--store", type=Path, default=Path("model_store"))
    add_calibration(parser)
    parser.add_argument(
        "--notes", type=Path, help="Markdown for the card: origin, limits, licences"
    )
    parser.add_argument(
        "--degenerate",
        action="store_true",
        help="also what says one caption for all images, or a word over and over",
    )
    add_search(parser)


def run(args: argparse.Namespace) -> int:
    """Publish, and say where."""
    source = torch_checkpoint.load(run_checkpoint(args.run_directory))
    source = source._replace(manifest=with_search(source.manifest, args))
    directory = publish(
        source,
        args.store,
        args.version,
        scores={},
        notes=_notes(args.notes),
        name=args.name,
        calibration=calibration_images(args.data, source.manifest.image),
        dev_scorers=dev_scorers(args.data),
        fit_confidence=confidence_fitter(args.data) if args.data else None,
        degenerate=args.degenerate,
    )
    print(directory)
    return 0


def _notes(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise TrainerError(f"notes {path} cannot be read: {error}") from error
