"""caption-service serve | caption PHOTO... | healthcheck.

Whatever is heavy is imported by the verb that needs it: a health check runs every few seconds.
"""

import argparse
import json
import sys
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import HTTPError

from app.captioner.errors import CheckpointError, ImageError
from app.settings import Settings, SettingsError, read_settings

if TYPE_CHECKING:
    from app.captioner.pipeline import Captioner
    from app.captioner.presentation import Told

_PROBE_TIMEOUT_S = 3.0
_EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - recognised here, not bound


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and give the exit code."""
    options = _parser().parse_args(arguments)
    try:
        settings = read_settings()
    except SettingsError as error:
        return _complain(error, code=2)
    return _VERBS[options.verb](options, settings)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="caption-service", description="Post a photo, get a sentence."
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("serve", help="start the service; CAPTION_* variables configure it")
    caption = verbs.add_parser("caption", help="caption photos without a service")
    caption.add_argument("photos", nargs="+", type=Path, metavar="PHOTO")
    caption.add_argument("--json", action="store_true", help="one JSON object a line")
    caption.add_argument("--n-best", type=_positive, default=1, metavar="N", help="captions each")
    caption.add_argument(
        "--min-confidence", type=_share, metavar="P", help="withhold captions below it, 0 to 1"
    )
    caption.add_argument("--neutral", action="store_true", help="say person, not man or woman")
    caption.add_argument("--style", choices=("sentence", "alt"), default="sentence")
    caption.add_argument("--tags", action="store_true", help="what the photos may show")
    healthcheck = verbs.add_parser("healthcheck", help="exit 0 when ready, else 1")
    healthcheck.add_argument("--url", help="default: /readyz of CAPTION_HOST and CAPTION_PORT")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("expected a number of at least 1")
    return number


def _share(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError("expected a number from 0 to 1")
    return number


def _complain(error: object, *, code: int = 1) -> int:
    print(f"caption-service: {error}", file=sys.stderr)
    return code


def _serve(options: argparse.Namespace, settings: Settings) -> int:  # noqa: ARG001
    from app.main import serve  # noqa: PLC0415
    from app.observability.logs import configure_logging  # noqa: PLC0415

    configure_logging(settings.log_level)
    return serve(settings)


def _caption(options: argparse.Namespace, settings: Settings) -> int:
    from app.loading import load_captioner  # noqa: PLC0415

    try:
        captioner = load_captioner(settings)
    except CheckpointError as error:
        return _complain(error)
    told = [_tell(photo, captioner, settings, options) for photo in options.photos]
    return 0 if all(told) else 1


def _tell(
    photo: Path, captioner: "Captioner", settings: Settings, options: argparse.Namespace
) -> bool:
    """Caption one photo; a bad one is told about and spares the others."""
    from app.captioner.presentation import Presentation, told  # noqa: PLC0415

    least = options.min_confidence
    how = Presentation(
        neutral=options.neutral,
        style=options.style,
        min_confidence=settings.min_confidence if least is None else least,
    )
    try:
        image = captioner.read(photo.read_bytes(), max_pixels=settings.max_pixels)
    except (OSError, ImageError) as error:
        _complain(f"{photo}: {error.strerror if isinstance(error, OSError) else error}")
        return False
    show = _show_json if options.json else _show_lines
    show(photo, told(captioner.caption([image]).captions[0], how), options)
    return True


def _show_lines(photo: Path, told: "Told", options: argparse.Namespace) -> None:
    labels = ", ".join(tag.label for tag in told.tags or ())
    if told.withheld:
        shows = f"; may show: {labels}" if labels else ""
        print(f"{photo}: (withheld, {told.withheld.replace('_', ' ')}{shows})", flush=True)
        return
    for caption in told[: options.n_best]:
        print(f"{photo}: {caption.text}", flush=True)
    if options.tags and labels:
        print(f"{photo}: may show: {labels}", flush=True)


def _show_json(photo: Path, told: "Told", options: argparse.Namespace) -> None:
    best = told[0]
    line = {
        "image": str(photo),
        "caption": told.text,
        "log_prob": best.log_prob,
        "confidence": best.confidence,
        **({"withheld": told.withheld} if told.withheld else {}),
        **({"tags": _tags(told)} if options.tags or told.withheld else {}),
        "candidates": [
            {
                "caption": caption.text,
                "log_prob": caption.log_prob,
                "score": caption.score,
                "confidence": caption.confidence,
            }
            for caption in told[: options.n_best]
        ],
    }
    print(json.dumps(line, ensure_ascii=False), flush=True)


def _tags(told: "Told") -> "list[dict[str, str | float]] | None":
    return None if told.tags is None else [tag._asdict() for tag in told.tags]


def _healthcheck(options: argparse.Namespace, settings: Settings) -> int:
    url = options.url or _readyz(settings)
    if not url.startswith(("http://", "https://")):
        return _complain(f"expected an http URL, got {url}", code=2)
    try:
        status, body = _get(url)
    except (OSError, HTTPException) as error:
        return _complain(f"{url}: {error}")
    print(body)
    return 0 if status == 200 else 1


def _readyz(settings: Settings) -> str:
    host = _EVERY_ADDRESS.get(settings.host, settings.host)
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}/readyz"


def _get(url: str) -> tuple[int, str]:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # we ask ourselves
    try:
        with direct.open(url, timeout=_PROBE_TIMEOUT_S) as answer:
            return answer.status, answer.read(4096).decode(errors="replace")
    except HTTPError as error:
        with error:
            return error.code, error.read(4096).decode(errors="replace")


_VERBS = {"serve": _serve, "caption": _caption, "healthcheck": _healthcheck}

if __name__ == "__main__":
    sys.exit(main())
