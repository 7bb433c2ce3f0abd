"""Arguments that several verbs declare, and what they mean."""

import argparse
from dataclasses import replace

import torch

from app.captioner.checkpoint import Checkpoint
from trainer.errors import TrainerError


def available_device() -> str:
    """Name the GPU where there is one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def add_rules(parser: argparse.ArgumentParser) -> None:
    """Declare ``--rules``."""
    parser.add_argument(
        "--rules",
        choices=["ours", "tutorial"],
        default="ours",
        help="tutorial adds a second table, by the rules of the Keras tutorial",
    )


def add_search(parser: argparse.ArgumentParser) -> None:
    """Declare what may stand in place of a checkpoint's own search."""
    parser.add_argument("--beam-width", type=int, help="in place of the checkpoint's own")
    parser.add_argument("--length-penalty", type=float, help="in place of the checkpoint's own")
    parser.add_argument("--no-repeat-ngram-size", type=int, help="in place of the checkpoint's own")


def with_search(loaded: Checkpoint, args: argparse.Namespace) -> Checkpoint:
    """Put what `add_search` declared in place of the checkpoint's own search.

    Raises:
        TrainerError: no search is possible with it.
    """
    asked = {
        name: value
        for name in ("beam_width", "length_penalty", "no_repeat_ngram_size")
        if (value := getattr(args, name)) is not None
    }
    try:
        search = replace(loaded.manifest.search, **asked)
    except ValueError as error:
        raise TrainerError(str(error)) from None
    return loaded._replace(manifest=loaded.manifest.model_copy(update={"search": search}))
