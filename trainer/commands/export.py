"""The verb ``export``: a checkpoint -> ONNX graphs, or a folder for a model hub."""

import argparse
from pathlib import Path

from app.captioner.checkpoint import load
from trainer.commands.arguments import run_checkpoint
from trainer.errors import TrainerError
from trainer.publishing.exporting import export_hub, export_onnx


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``export``."""
    parser.add_argument("checkpoint", type=Path, help="a directory <name>/<version>, or a run")
    parser.add_argument("--onnx", type=Path, metavar="DIR", help="encoder and step in float32")
    parser.add_argument("--hub", type=Path, metavar="DIR", help="model card, config and weights")


def run(args: argparse.Namespace) -> int:
    """Export, and say what was written."""
    if not (args.onnx or args.hub):
        raise TrainerError("export expects --onnx DIR or --hub DIR")
    source = run_checkpoint(args.checkpoint)
    loaded = load(source)
    written = export_onnx(loaded, args.onnx) if args.onnx else []
    written += export_hub(loaded, source, args.hub) if args.hub else []
    print("\n".join(map(str, written)))
    return 0
