"""The verb ``doctor``: everything that is wrong with a data directory, and what to do."""

import argparse
from pathlib import Path

from trainer import caption_checks, image_checks
from trainer.findings import Finding
from trainer.survey import Survey, survey


def examine(found: Survey) -> list[Finding]:
    """Run every check, errors first."""
    checks = (*image_checks.CHECKS, *caption_checks.CHECKS)
    findings = [finding for check in checks for finding in check(found)]
    return sorted(findings, key=lambda finding: finding.severity)


def diagnose(directory: Path, *, images: str | None = None) -> int:
    """Print all findings of a directory.

    Returns:
        1 if one of them is an error, else 0.
    """
    findings = examine(survey(directory, images=images))
    for finding in findings:
        print(finding)
    errors = sum(finding.severity == "error" for finding in findings)
    print(f"{directory}: {errors} errors, {len(findings) - errors} notes")
    return int(errors > 0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``doctor``."""
    parser.add_argument("data", type=Path, metavar="DATA", help="directory in Flickr8k's layout")
    parser.add_argument("--images", metavar="FOLDER", help="image folder, if of an unusual name")


def run(args: argparse.Namespace) -> int:
    """Examine the directory."""
    return diagnose(args.data, images=args.images)
