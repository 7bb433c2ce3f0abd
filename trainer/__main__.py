"""python -m trainer VERB; `VERBS` names them."""

import argparse
import sys
from io import TextIOWrapper

from app.captioner.errors import CaptionerError
from trainer.errors import TrainerError

try:
    from trainer.commands import (
        average,
        calibrate,
        convert,
        doctor,
        evaluate,
        export,
        fit,
        prepare,
        publish,
        score,
        show,
    )
except ModuleNotFoundError as missing:
    if (missing.name or "").partition(".")[0] in {"app", "trainer"}:
        raise
    raise SystemExit(
        f"the trainer needs {missing.name}, which is not installed: "
        "pip install 'caption-service[train]'"
    ) from None

EXPECTED = (
    *(TrainerError, CaptionerError),
    *(OSError, RuntimeError, ArithmeticError, MemoryError),  # of the system and of libraries
)
INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""

VERBS = {
    "prepare": (prepare, "import captions, or check a data directory and decode its images once"),
    "doctor": (doctor, "name everything that is wrong with a data directory, and what to do"),
    "fit": (fit, "train: a recipe and data in, a run directory out; resumes"),
    "average": (average, "average checkpoints that were trained on from one another"),
    "evaluate": (evaluate, "caption a split with a checkpoint and score it"),
    "score": (score, "score captions from a file"),
    "calibrate": (calibrate, "let a checkpoint's captions say how far they can be trusted"),
    "convert": (convert, "a checkpoint of a version before 0.2.0 -> one that this version loads"),
    "show": (show, "runs side by side: how they went, and in what they differ"),
    "export": (export, "ONNX graphs, or a folder for a model hub"),
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
    parser.add_argument("--traceback", action="store_true", help="show where an error came up")
    args = parser.parse_args(arguments)
    _show_any_letter()
    try:
        return int(args.act(args))
    except EXPECTED as error:
        if args.traceback:
            raise
        print(f"{args.verb}: {told(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{args.verb}: stopped; the same command goes on", file=sys.stderr)
        return INTERRUPTED


def _show_any_letter() -> None:
    """Let a terminal that knows few letters show the others as escapes, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def told(error: Exception) -> str:
    """Say in a line what went wrong: our own words, or the system's with the file it speaks of."""
    if isinstance(error, TrainerError | CaptionerError):
        return str(error)
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, OSError) and error.strerror and error.filename:
        reason = f"{error.filename}: {error.strerror}"
    return f"{reason} ({type(error).__name__}; python -m trainer --traceback shows where)"


if __name__ == "__main__":
    sys.exit(main())
