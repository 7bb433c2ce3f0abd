"""python -m trainer {prepare,doctor,fit,average,evaluate,score,calibrate,convert,publish}."""

import argparse
import sys

from app.captioner.errors import CaptionerError
from trainer.commands import (
    average,
    calibrate,
    convert,
    doctor,
    evaluate,
    fit,
    prepare,
    publish,
    score,
)
from trainer.errors import TrainerError

VERBS = {
    "prepare": (prepare, "import captions, or check a data directory and decode its images once"),
    "doctor": (doctor, "name everything that is wrong with a data directory, and what to do"),
    "fit": (fit, "train: a recipe and data in, a run directory out; resumes"),
    "average": (average, "average checkpoints that were trained on from one another"),
    "evaluate": (evaluate, "caption a split with a checkpoint and score it"),
    "score": (score, "score captions from a file"),
    "calibrate": (calibrate, "let a checkpoint's captions say how far they can be trusted"),
    "convert": (convert, "a checkpoint of a version before 0.2.0 -> one that this version loads"),
    "publish": (publish, "turn a run's best checkpoint into a directory of the model store"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; 0 when it did what was asked, 1 with a reason when it could not."""
    parser = argparse.ArgumentParser(prog="python -m trainer", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name, (module, summary) in VERBS.items():
        verb = verbs.add_parser(name, help=summary, description=summary)
        module.add_arguments(verb)
        verb.set_defaults(act=module.run)
    args = parser.parse_args(arguments)
    try:
        return int(args.act(args))
    except (TrainerError, CaptionerError) as error:
        print(f"{args.verb}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
