"""The verb ``evaluate``: a checkpoint captions a split, and the captions are scored."""

import argparse
import json
from pathlib import Path
from typing import Any, get_args

from app.captioner.checkpoint import load as load_checkpoint
from app.captioner.engines.engine import Precision
from app.captioner.pipeline import Captioner
from trainer.commands.arguments import (
    add_device,
    add_rules,
    add_search,
    run_checkpoint,
    with_search,
    write_text,
)
from trainer.data.flickr8k import read_split
from trainer.evaluation.captioning import (
    caption_split,
    caption_texts,
    references_of,
    score_split,
    training_captions,
)
from trainer.evaluation.report import Evaluation, write_report
from trainer.scoring.keras_tutorial import TutorialScores, tutorial_score
from trainer.scoring.scores import Scores


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
    add_device(parser)
    parser.add_argument(
        "--precision",
        choices=get_args(Precision),
        default="float32",
        help="the service's CAPTION_PRECISION may differ",
    )


def run(args: argparse.Namespace) -> int:
    """Print the score table."""
    loaded = load_checkpoint(run_checkpoint(args.checkpoint))
    loaded = loaded.with_manifest(with_search(loaded.manifest, args))
    split = read_split(args.data, args.split, images=args.images)
    training = training_captions(args.data, evaluated=args.split)
    captioner = Captioner.of(loaded, device=args.device, precision=args.precision)
    captions = caption_split(captioner, split)
    name = captioner.vocabulary.tokeniser
    scores = score_split(caption_texts(captions), split, training=training, tokeniser_name=name)
    if args.captions:
        rows = [{"image": k, "caption": v} for k, v in caption_texts(captions).items()]
        lines = (json.dumps(row, ensure_ascii=False) for row in rows)
        write_text(args.captions, "".join(f"{line}\n" for line in lines))
    if args.report:
        print(write_report(args.report, Evaluation(captioner, split, captions, scores)))
    other = None
    if args.rules == "tutorial":
        other = tutorial_score(caption_texts(captions), references_of(split))
    if args.json:
        figures = {"precision": args.precision, **_as_dict(scores, other)}
        write_text(args.json, json.dumps(figures, indent=2, ensure_ascii=False) + "\n")
    print(f"{args.checkpoint} on {args.split}, {args.precision}, {loaded.manifest.search}")
    print(scores.table())
    if other:
        print(f"\n{other.table()}")
    return 0


def _as_dict(scores: Scores, other: TutorialScores | None) -> dict[str, Any]:
    """Keep figures by other rules under a name of their own."""
    return {**scores.as_dict(), **({"tutorial": other.as_dict()} if other else {})}
