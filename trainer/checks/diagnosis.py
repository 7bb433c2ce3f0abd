"""All checks of a data directory, run and printed."""

from pathlib import Path

from trainer.checks import caption_checks, image_checks
from trainer.checks.directory_scan import DirectoryScan, scan_directory
from trainer.checks.findings import Finding
from trainer.data.pixels import PixelHashes


def examine(scan: DirectoryScan) -> list[Finding]:
    """Run every check, errors first."""
    checks = (*image_checks.CHECKS, *caption_checks.CHECKS)
    findings = [finding for check in checks for finding in check(scan)]
    return sorted(findings, key=lambda finding: finding.severity)


def diagnose(
    directory: Path, *, images: str | None = None, pixel_hashes: PixelHashes | None = None
) -> int:
    """Print all findings of a directory.

    Args:
        directory: in Flickr8k's layout.
        images: name of the image folder, where it is an unusual one.
        pixel_hashes: of the images, where they have been decoded just now.

    Returns:
        1 if one of them is an error, else 0.
    """
    findings = examine(scan_directory(directory, images=images, pixel_hashes=pixel_hashes))
    for finding in findings:
        print(finding)
    errors = sum(finding.severity == "error" for finding in findings)
    print(f"{directory}: {errors} errors, {len(findings) - errors} notes")
    return int(errors > 0)
