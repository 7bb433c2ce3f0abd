"""Arguments that several verbs declare, and what they mean."""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from app.captioner.checkpoint import MANIFEST
from app.captioner.image.decode import Pixels
from app.captioner.manifest import ImageGeometry, Manifest
from app.captioner.pipeline import Captioner
from trainer.data.arrays import square
from trainer.data.flickr8k import read_split
from trainer.errors import TrainerError
from trainer.evaluation.captioning import evaluate, training_captions
from trainer.scoring.scores import Scores
from trainer.training.run_directory import BEST

CALIBRATION_IMAGES = 300


def available_device() -> str:
    """Name the GPU where there is one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def add_device(parser: argparse.ArgumentParser) -> None:
    """Declare ``--device``."""
    parser.add_argument("--device", type=_device, default=available_device(), help="cpu or cuda")


def _device(name: str) -> str:
    """Refuse a device that torch cannot compute on here, and name those that it can."""
    choices = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is not None and (name in choices or (name == "cuda" and len(choices) > 1)):
        return name
    why = " (torch finds no GPU here)" if name.startswith("cuda") and len(choices) == 1 else ""
    raise argparse.ArgumentTypeError(f"no device {name!r}{why}: choose {' or '.join(choices)}")


def run_checkpoint(path: Path) -> Path:
    """Give the checkpoint that is meant: a directory itself, or the best one of a run.

    Raises:
        TrainerError: nothing is there, or the run has no best checkpoint yet.
    """
    if (path / MANIFEST).exists():
        return path
    run = path.parent if path.name == BEST else path
    if (path / BEST / MANIFEST).exists():
        return path / BEST
    if (run / "recipe.json").exists():
        raise TrainerError(
            f"{run} has no checkpoint yet: its first epoch has not ended, go on with `fit` "
            "and the same recipe, data and run"
        )
    if not path.exists():
        raise TrainerError(f"{path} does not exist: name a run, or a checkpoint of a model store")
    return path


def write_text(path: Path, text: str) -> None:
    """Write a file as UTF-8, its folders too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


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


def with_search(manifest: Manifest, args: argparse.Namespace) -> Manifest:
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
        search = replace(manifest.search, **asked)
    except ValueError as error:
        raise TrainerError(str(error)) from None
    return manifest.model_copy(update={"search": search})


def add_calibration(parser: argparse.ArgumentParser) -> None:
    """Declare where the images come from that the encoder in int8 is made by."""
    parser.add_argument(
        "--data",
        type=Path,
        help="directory in Flickr8k's layout: train images make int8, dev images are scored",
    )


def calibration_images(data: Path | None, image: ImageGeometry) -> list[Pixels]:
    """Give some hundred training images as the network sees them; none without a directory.

    Raises:
        DataError: an image cannot be read; the message names it.
    """
    if data is None:
        return []
    examples = read_split(data, "train").examples
    step = max(1, len(examples) // CALIBRATION_IMAGES)
    return [square(each.path, image) for each in examples[::step][:CALIBRATION_IMAGES]]


def dev_scorer(data: Path) -> Callable[[Captioner], Scores]:
    """Give what captions the dev images of a directory, scores them and prints the table."""
    dev = read_split(data, "dev")
    training = training_captions(data, evaluated="dev")

    def scores(captioner: Captioner) -> Scores:
        found, _ = evaluate(captioner, dev, training=training)
        print(f"{captioner.precision}\n{found.table()}")
        return found

    return scores
