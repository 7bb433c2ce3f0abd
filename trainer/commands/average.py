"""The verb ``average``: several checkpoints of one network -> a run directory with their mean."""

import argparse
from pathlib import Path

import torch

from trainer.commands.arguments import run_checkpoint
from trainer.training.checkpoint_averaging import average


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``average``."""
    parser.add_argument("checkpoints", type=Path, nargs="+", metavar="CHECKPOINT")
    parser.add_argument("--run", type=Path, required=True, help="new directory for the mean")
    parser.add_argument("--shares", type=float, nargs="+", default=[], help="equal without them")


def run(args: argparse.Namespace) -> int:
    """Average, and say where the mean is."""
    with torch.no_grad():
        print(average(list(map(run_checkpoint, args.checkpoints)), args.run, shares=args.shares))
    return 0
