"""The verb ``calibrate``: a checkpoint -> the same with captions that say how sure they are."""

import argparse
from pathlib import Path

from app.captioner import checkpoint, confidence
from app.captioner.pipeline import Captioner
from trainer.commands.arguments import add_calibration, confidence_fitter
from trainer.errors import TrainerError
from trainer.publishing.model_card import confidence_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``calibrate``."""
    parser.add_argument("checkpoint", type=Path, help="a directory <name>/<version>, or <run>/best")
    parser.add_argument("--version", required=True, help="of the new directory")
    parser.add_argument("--store", type=Path, default=Path("model_store"))
    add_calibration(parser)


def run(args: argparse.Namespace) -> int:
    """Fit the confidence model, write the new directory, and say where."""
    if not args.data:
        raise TrainerError("calibrate expects --data, directories with images of train and dev")
    loaded = checkpoint.load(args.checkpoint)
    directory = args.store / loaded.manifest.name / args.version
    if directory.exists():
        checkpoint.refuse_existing(directory)
    fitted = confidence_fitter(args.data)(loaded)
    if fitted is None:
        return 1
    kept = set(loaded.manifest.files) - {checkpoint.VOCABULARY}
    files = {name: (args.checkpoint / name).read_bytes() for name in kept}
    if checkpoint.CARD in files:
        old, new = f", version {loaded.manifest.version}\n", f", version {args.version}\n"
        card = files[checkpoint.CARD].decode().replace(old, new, 1).partition("## Confidence")[0]
        told = confidence_text({"confidence": fitted.scores})
        files[checkpoint.CARD] = f"{card.rstrip()}\n\n{told}\n".encode()
    files[confidence.FILE] = fitted.content
    scores = {**loaded.manifest.scores, "confidence": fitted.scores}
    manifest = loaded.manifest.model_copy(update={"version": args.version, "scores": scores})
    checkpoint.write(directory, manifest, loaded.vocabulary, files)
    Captioner.load(directory)
    print(directory)
    return 0
