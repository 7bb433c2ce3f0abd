"""Arguments that several verbs declare, and what they mean."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from app.captioner.checkpoint import MANIFEST, Checkpoint
from app.captioner.engines.cpu import CpuEngine
from app.captioner.image.decode import Pixels
from app.captioner.manifest import ImageGeometry, Manifest
from app.captioner.pipeline import SHOT_FRAMES, Captioner
from trainer.calibrating.fitting import Domain, confidence_table, fit_confidence, scores_of
from trainer.data.arrays import image_or_clip, square
from trainer.data.flickr8k import Example, has_split, read_split, still_of
from trainer.errors import TrainerError
from trainer.evaluation.captioning import evaluate, training_captions
from trainer.publishing.publish import Confidence, Scorer
from trainer.scoring.scores import Scores
from trainer.training.run_directory import BEST

CALIBRATION_IMAGES = 300
CONFIDENCE_IMAGES = 3000


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
    """Declare where the images come from that int8 and confidence are made by."""
    parser.add_argument(
        "--data",
        type=Path,
        action="append",
        default=[],
        help="directory in Flickr8k's layout, the kind of photo it is made for first, then others: "
        "train images make int8 and attributes, dev images are scored and make confidence",
    )


def with_split(data: Sequence[Path], split: str) -> list[Path]:
    """Give the directories that have a split.

    Raises:
        TrainerError: directories were given, and none has it, or two have one name.
    """
    if len({directory.name for directory in data}) < len(data):
        names = ", ".join(map(str, data))
        raise TrainerError(f"data directories are told by their last names, got {names}")
    found = [directory for directory in data if has_split(directory, split)]
    if data and not found:
        names = ", ".join(map(str, data))
        raise TrainerError(f"none of {names} has a split {split!r}: add its list to one of them")
    return found


def calibration_images(data: Sequence[Path], image: ImageGeometry) -> list[Pixels]:
    """Give some hundred training images as the network sees them; none without a directory.

    Raises:
        DataError: an image cannot be read; the message names it.
    """
    examples = _examples(with_split(data, "train"), "train")
    return [square(still_of(each), image) for each in _sample(examples, CALIBRATION_IMAGES)]


def _examples(directories: Sequence[Path], split: str) -> list[Example]:
    return [each for data in directories for each in read_split(data, split).examples]


def _sample(examples: Sequence[Example], count: int) -> list[Example]:
    """Take so many, evenly spread."""
    places = np.linspace(0, len(examples) - 1, min(count, len(examples))).astype(int)
    return [examples[place] for place in places]


def dev_scorers(data: Sequence[Path]) -> dict[str, Scorer]:
    """Give what captions the dev images of each directory, scores them and prints the table."""
    return {each.name: _dev_scorer(each) for each in with_split(data, "dev")}


def _dev_scorer(data: Path) -> Scorer:
    dev = read_split(data, "dev")
    training = training_captions(data, evaluated="dev")

    def scores(captioner: Captioner) -> Scores:
        found, _ = evaluate(captioner, dev, training=training)
        print(f"{data.name}, {captioner.precision}\n{found.table()}")
        return found

    return scores


def confidence_fitter(data: Sequence[Path]) -> Callable[[Checkpoint], Confidence | None]:
    """Give what fits a confidence model by these directories; it says why where it cannot."""
    trained, judged = with_split(data, "train"), with_split(data, "dev")

    def fit(written: Checkpoint) -> Confidence | None:
        image = written.manifest.image
        frames = written.manifest.architecture.frames_per_clip or SHOT_FRAMES

        def domain(name: str, examples: Sequence[Example]) -> Domain:
            squares = [image_or_clip(each.path, image, frames) for each in examples]
            return Domain(name, squares, [each.captions for each in examples])

        training = domain("training", _sample(_examples(trained, "train"), CONFIDENCE_IMAGES))
        domains = [domain(each.name, _examples([each], "dev")) for each in judged]
        engine = CpuEngine(written, precision="float32", workers=1)
        try:
            fitted = fit_confidence(written, engine, training, domains)
        except TrainerError as error:
            print(f"captions get no confidence: {error}")
            return None
        print(confidence_table(fitted))
        return Confidence(fitted.content, scores_of(fitted))

    return fit
