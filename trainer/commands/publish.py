"""The verb ``publish``: a run's best checkpoint -> an immutable directory of the model store."""

import argparse
from pathlib import Path
from typing import Any

from app.captioner import checkpoint
from app.captioner.pipeline import Captioner
from trainer.commands.arguments import add_search, available_device, with_search
from trainer.data.flickr8k import read_split
from trainer.errors import TrainerError
from trainer.evaluation.captioning import evaluate, training_captions
from trainer.publishing.publish import publish
from trainer.training.run_directory import BEST


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``publish``."""
    parser.add_argument("run_directory", type=Path, metavar="RUN", help="what fit wrote")
    parser.add_argument("--version", required=True, help="of the new directory")
    parser.add_argument("--name", help="of the checkpoint, in place of the recipe's")
    parser.add_argument("--store", type=Path, default=Path("model_store"))
    parser.add_argument("--data", type=Path, help="score the split dev of this directory first")
    parser.add_argument(
        "--notes", type=Path, help="Markdown for the card: origin, limits, licences"
    )
    add_search(parser)
    parser.add_argument("--device", default=available_device())


def run(args: argparse.Namespace) -> int:
    """Publish, and say where."""
    directory = args.run_directory / BEST
    source = with_search(checkpoint.load(directory), args)
    scores: dict[str, Any] = {}
    if args.data:
        captioner = Captioner(source, device=args.device)
        training = training_captions(args.data, evaluated="dev")
        found, _ = evaluate(captioner, read_split(args.data, "dev"), training=training)
        print(found.table())
        scores["dev"] = found.as_dict()
    notes = _notes(args.notes)
    print(publish(source, args.store, args.version, scores=scores, notes=notes, name=args.name))
    return 0


def _notes(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise TrainerError(f"notes {path} cannot be read: {error}") from error
