"""The verb ``evaluate``: a checkpoint captions a split, and the captions are scored."""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from torch import Tensor
from tqdm import tqdm

from app.captioner.captions import Caption
from app.captioner.checkpoint import Checkpoint
from app.captioner.checkpoint import load as load_checkpoint
from app.captioner.device import Precision
from app.captioner.errors import ImageError
from app.captioner.pipeline import Captioner
from trainer.data import TOKEN_FILE, Example, Split, list_path, read_split, split_names
from trainer.devices import available_device
from trainer.errors import DataError, TrainerError
from trainer.pixels import MAX_PIXELS
from trainer.report import Evaluation, write_report
from trainer.score import add_rules
from trainer.scoring import Scores, score
from trainer.textfiles import read_captions, read_list
from trainer.tutorial import TutorialScores, tutorial_score

BATCH_IMAGES = 16


def evaluate(
    captioner: Captioner, split: Split, *, training: Sequence[str] | None = None
) -> tuple[Scores, dict[str, str]]:
    """Caption every image of a split the way the service does, and score the best captions.

    Args:
        captioner: the checkpoint, loaded.
        split: images and references.
        training: captions of the training split; where given, those copied from it are counted.

    Returns:
        The scores, and image -> caption.

    Raises:
        DataError: an image cannot be read; the message names it.
    """
    candidates = texts(say(captioner, split))
    return scored(candidates, split, training=training), candidates


def say(captioner: Captioner, split: Split) -> dict[str, Caption]:
    """Give the best caption of every image of a split.

    Raises:
        DataError: an image cannot be read; the message names it.
    """
    return dict(_captions(captioner, split))


def texts(captions: Mapping[str, Caption]) -> dict[str, str]:
    """Take the words of captions."""
    return {image: caption.text for image, caption in captions.items()}


def scored(
    candidates: Mapping[str, str], split: Split, *, training: Sequence[str] | None
) -> Scores:
    """Score captions of all images of a split."""
    return score(candidates, references_of(split), training=training)


def references_of(split: Split) -> dict[str, tuple[str, ...]]:
    """Give the captions people wrote for each image."""
    return {example.image: example.captions for example in split.examples}


def _captions(captioner: Captioner, split: Split) -> Iterator[tuple[str, Caption]]:
    examples = split.examples
    starts = range(0, len(examples), BATCH_IMAGES)
    for start in tqdm(starts, f"captions {split.name}", unit="batch"):
        batch = examples[start : start + BATCH_IMAGES]
        found = captioner.caption([_read(captioner, example) for example in batch])
        for example, candidates in zip(batch, found, strict=True):
            yield example.image, candidates[0]


def _read(captioner: Captioner, example: Example) -> Tensor:
    try:
        return captioner.read(example.path.read_bytes(), max_pixels=MAX_PIXELS)
    except ImageError as error:
        raise DataError(f"{example.path} cannot be used: {error}") from None


def training_captions(data: Path, *, evaluated: str) -> list[str] | None:
    """Read what training was told, if the directory has the list and it is not what is evaluated.

    The training images need not be there: whoever scores held-back images has no use for them.
    """
    if evaluated == "train" or "train" not in split_names(data):
        return None
    captions = read_captions(data / TOKEN_FILE)
    return [text for name in read_list(list_path(data, "train")) for text in captions.get(name, ())]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``evaluate``."""
    parser.add_argument("checkpoint", type=Path, help="a directory <name>/<version> or <run>/best")
    parser.add_argument("--data", type=Path, required=True, help="directory in Flickr8k's layout")
    parser.add_argument("--split", default="dev", help="FOO reads Flickr_8k.FOOImages.txt")
    parser.add_argument("--images", metavar="FOLDER", help="image folder, if of an unusual name")
    parser.add_argument("--captions", type=Path, metavar="FILE", help="write the captions, JSONL")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the scores as JSON")
    parser.add_argument("--report", type=Path, metavar="DIR", help="write a page to look at there")
    add_search(parser)
    add_rules(parser)
    parser.add_argument("--device", default=available_device())
    parser.add_argument(
        "--precision",
        choices=get_args(Precision),
        default="float32",
        help="the service's CAPTION_PRECISION may differ",
    )


def add_search(parser: argparse.ArgumentParser) -> None:
    """Declare what may stand in place of a checkpoint's own search."""
    parser.add_argument("--beam-width", type=int, help="in place of the checkpoint's own")
    parser.add_argument("--length-penalty", type=float, help="in place of the checkpoint's own")
    parser.add_argument("--no-repeat-ngram-size", type=int, help="in place of the checkpoint's own")


def run(args: argparse.Namespace) -> int:
    """Print the score table."""
    loaded = with_search(load_checkpoint(args.checkpoint), args)
    split = read_split(args.data, args.split, images=args.images)
    training = training_captions(args.data, evaluated=args.split)
    captioner = Captioner(loaded, device=args.device, precision=args.precision)
    captions = say(captioner, split)
    scores = scored(texts(captions), split, training=training)
    if args.captions:
        lines = (json.dumps({"image": k, "caption": v}) for k, v in texts(captions).items())
        args.captions.write_text("".join(f"{line}\n" for line in lines))
    if args.report:
        print(write_report(args.report, Evaluation(captioner, split, captions, scores)))
    other = None
    if args.rules == "tutorial":
        other = tutorial_score(texts(captions), references_of(split))
    if args.json:
        figures = {"precision": args.precision, **_as_dict(scores, other)}
        args.json.write_text(json.dumps(figures, indent=2) + "\n")
    print(f"{args.checkpoint} on {args.split}, {args.precision}, {loaded.manifest.search}")
    print(scores.table())
    if other:
        print(f"\n{other.table()}")
    return 0


def _as_dict(scores: Scores, other: TutorialScores | None) -> dict[str, Any]:
    """Keep figures by other rules under a name of their own."""
    return {**scores.as_dict(), **({"tutorial": other.as_dict()} if other else {})}


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
