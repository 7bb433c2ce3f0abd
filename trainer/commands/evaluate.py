"""The verb ``evaluate``: a checkpoint captions splits, and the captions are scored."""

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from app.captioner.captions import Caption
from app.captioner.checkpoint import load as load_checkpoint
from app.captioner.engines.engine import Precision
from app.captioner.pipeline import Captioner
from app.captioner.presentation import Presentation
from trainer.commands.arguments import (
    add_device,
    add_rules,
    add_search,
    run_checkpoint,
    with_search,
    write_text,
)
from trainer.data.flickr8k import Split, read_split
from trainer.errors import TrainerError
from trainer.evaluation.captioning import (
    caption_split,
    caption_texts,
    confidence_and_right,
    references_of,
    score_split,
    training_captions,
)
from trainer.evaluation.report import Evaluation, write_report
from trainer.scoring.keras_tutorial import TutorialScores, tutorial_score
from trainer.scoring.reliability import ADVISED, Reliability, reliability
from trainer.scoring.scores import Scores


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``evaluate``."""
    parser.add_argument("checkpoint", type=Path, help="a directory <name>/<version> or <run>/best")
    parser.add_argument(
        "--data",
        type=Path,
        action="append",
        required=True,
        help="directory in Flickr8k's layout; several times for a table each",
    )
    parser.add_argument("--split", default="dev", help="FOO reads Flickr_8k.FOOImages.txt")
    parser.add_argument("--images", metavar="FOLDER", help="image folder, if of an unusual name")
    parser.add_argument("--captions", type=Path, metavar="FILE", help="write the captions, JSONL")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the scores as JSON")
    parser.add_argument("--report", type=Path, metavar="DIR", help="write a page to look at there")
    parser.add_argument(
        "--neutral", action="store_true", help="score captions without gender, as ?neutral=true"
    )
    add_search(parser)
    add_rules(parser)
    add_device(parser)
    parser.add_argument(
        "--precision",
        choices=get_args(Precision),
        default="float32",
        help="the service's CAPTION_PRECISION may differ",
    )


@dataclass(frozen=True)
class _Evaluated:
    """What became of one split."""

    split: Split
    captions: dict[str, Caption]
    scores: Scores
    reliability: Reliability | None
    tutorial: TutorialScores | None

    def as_dict(self) -> dict[str, Any]:
        """Give figures by other rules a name of their own."""
        return {
            **self.scores.as_dict(),
            **({"confidence": self.reliability.as_dict()} if self.reliability else {}),
            **({"tutorial": self.tutorial.as_dict()} if self.tutorial else {}),
        }

    def text(self) -> str:
        """Give the tables."""
        parts = [self.scores.table()]
        if self.reliability:
            parts.append(_confidence_text(self.reliability))
        if self.tutorial:
            parts.append(f"\n{self.tutorial.table()}")
        return "\n".join(parts)


def run(args: argparse.Namespace) -> int:
    """Print a score table for each directory."""
    if args.report and len(args.data) > 1:
        raise TrainerError("--report shows one directory: name one --data")
    loaded = load_checkpoint(run_checkpoint(args.checkpoint))
    loaded = loaded.with_manifest(with_search(loaded.manifest, args))
    captioner = Captioner.of(loaded, device=args.device, precision=args.precision)
    found: dict[str, _Evaluated] = {}
    for data in args.data:
        each = found[str(data)] = _evaluated(captioner, data, args)
        if args.report:
            shown = Evaluation(captioner, each.split, each.captions, each.scores)
            print(write_report(args.report, shown))
        where = args.split if len(args.data) == 1 else f"{args.split} of {data.name}"
        print(f"{args.checkpoint} on {where}, {args.precision}, {loaded.manifest.search}")
        print(each.text())
    if args.captions:
        _write_captions(args.captions, found)
    if args.json:
        figures = _figures(args.precision, found)
        write_text(args.json, json.dumps(figures, indent=2, ensure_ascii=False) + "\n")
    return 0


def _evaluated(captioner: Captioner, data: Path, args: argparse.Namespace) -> _Evaluated:
    split = read_split(data, args.split, images=args.images)
    captions = caption_split(captioner, split, Presentation(neutral=args.neutral))
    texts, references = caption_texts(captions), references_of(split)
    tutorial = tutorial_score(texts, references) if args.rules == "tutorial" else None
    training = training_captions(data, evaluated=args.split)
    return _Evaluated(
        split,
        captions,
        score_split(texts, split, training=training, tokeniser_name=captioner.vocabulary.tokeniser),
        _reliability(captions, references),
        tutorial,
    )


def _reliability(
    captions: Mapping[str, Caption], references: Mapping[str, tuple[str, ...]]
) -> Reliability | None:
    judged = confidence_and_right(captions, references)
    return reliability(*judged) if judged else None


def _confidence_text(found: Reliability) -> str:
    auroc = "" if found.auroc is None else f"AUROC {found.auroc:.3f}, "
    wrong = "none" if found.wrong_told is None else f"{found.wrong_told:.1%}"
    return (
        f"confidence: {auroc}expected calibration error {found.calibration_error:.3f}; "
        f"at {ADVISED} {found.coverage:.1%} are told, {wrong} of them wrong, of all "
        f"{1 - found.right:.1%}"
    )


def _write_captions(path: Path, found: Mapping[str, _Evaluated]) -> None:
    lines = (
        json.dumps(
            {"image": image, "caption": caption.text, "confidence": caption.confidence},
            ensure_ascii=False,
        )
        for each in found.values()
        for image, caption in each.captions.items()
    )
    write_text(path, "".join(f"{line}\n" for line in lines))


def _figures(precision: str, found: Mapping[str, _Evaluated]) -> dict[str, Any]:
    tables = {name: each.as_dict() for name, each in found.items()}
    if len(tables) == 1:
        return {"precision": precision, **next(iter(tables.values()))}
    return {"precision": precision, "by_data": tables}
