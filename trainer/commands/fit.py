"""The verb ``fit``: a recipe and a data directory -> a run directory."""

import argparse
from pathlib import Path

from trainer.commands.arguments import add_device
from trainer.training.context import PRECISIONS
from trainer.training.distributed import is_leader
from trainer.training.fit import fit
from trainer.training.recipe import read_recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``fit``."""
    parser.add_argument("recipe", type=Path, help="TOML file, see trainer/recipes")
    parser.add_argument(
        "--data",
        type=Path,
        action="append",
        required=True,
        help="Flickr8k's layout, or shards; several times to train on several directories",
    )
    parser.add_argument("--sentences", type=Path, help="text file for stages of kind language")
    parser.add_argument("--run", type=Path, required=True, help="new directory, or one to resume")
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"), help="where arrays go")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="change the recipe")
    parser.add_argument("--initial", type=Path, help="checkpoint directory to start from")
    parser.add_argument("--encoder-weights", type=Path, help="file, or checkpoint directory")
    parser.add_argument("--random-encoder", action="store_true", help="start from random weights")
    add_device(parser)
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="of the steps")


def run(args: argparse.Namespace) -> int:
    """Train, and say where the best checkpoint is."""
    best = fit(
        read_recipe(args.recipe, changes=args.set),
        args.data,
        args.run,
        cache=args.cache,
        sentences=args.sentences,
        initial=args.initial,
        encoder_weights=args.encoder_weights,
        random_encoder=args.random_encoder,
        device=args.device,
        precision=args.precision,
    )
    if is_leader():
        print(best)
    return 0
