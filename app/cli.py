"""caption-service serve | caption PHOTO... | healthcheck, and what a terminal expects of each.

Whatever is heavy is imported by the verb that needs it: a health check runs every few seconds.
"""

import argparse
import io
import json
import os
import signal
import sys
import urllib.request
from collections.abc import Callable, Sequence
from http.client import HTTPException
from importlib.metadata import version
from pathlib import Path
from stat import S_ISDIR
from typing import TYPE_CHECKING
from urllib.error import HTTPError

from app.captioner.errors import CheckpointError, ImageError
from app.settings import Settings, SettingsError, read_settings, variable

if TYPE_CHECKING:
    from app.captioner.captions import Caption
    from app.captioner.pipeline import Captioner

    Show = Callable[[str, tuple[Caption, ...]], None]

_STDIN = "-"
_PROBE_TIMEOUT_S = 3.0
_EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - recognised here, not bound


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and give the exit code."""
    _show_every_name()
    options = _parser().parse_args(arguments)
    try:
        settings = read_settings(_flags(options))
        return _VERBS[options.verb](options, settings)
    except SettingsError as error:
        return _complain(error, code=2)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:  # whoever reads has had enough; Python would flush into it at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


def _show_every_name() -> None:
    """Write what a terminal cannot show as escapes, as stderr does anyway."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="caption-service", description="Post a photo, get a sentence."
    )
    installed = version("caption-service")
    parser.add_argument("--version", action="version", version=f"%(prog)s {installed}")
    verbs = parser.add_subparsers(dest="verb", required=True)
    _add_serve(verbs.add_parser("serve", help="start the service; flags win over CAPTION_*"))
    caption = verbs.add_parser("caption", help="caption photos without a service")
    caption.add_argument("photos", nargs="+", metavar="PHOTO", help="a file; - is standard input")
    caption.add_argument("--json", action="store_true", help="one JSON object a line")
    caption.add_argument("--n-best", type=_count, default=1, metavar="N", help="captions each")
    healthcheck = verbs.add_parser("healthcheck", help="exit 0 when ready, else 1")
    healthcheck.add_argument("--url", help="default: /readyz of CAPTION_HOST and CAPTION_PORT")
    return parser


def _add_serve(serve: argparse.ArgumentParser) -> None:
    """Add a flag for every setting but the keys, which other users of the machine could read."""
    for name, field in Settings.model_fields.items():
        if name not in _SECRET:
            told = f"{variable(name)}; default: {_default(field.default)}"
            serve.add_argument(f"--{name.replace('_', '-')}", metavar="VALUE", help=told)


_SECRET = frozenset({"api_keys"})


def _default(value: object) -> str:
    return "none" if value in ("", ()) else str(value)


def _flags(options: argparse.Namespace) -> dict[str, str]:
    """Give what flags say of settings, of the verb that has them."""
    if options.verb != "serve":
        return {}
    given = {name: getattr(options, name, None) for name in Settings.model_fields}
    return {name: text for name, text in given.items() if text is not None}


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text}")
    return int(text)


def _complain(error: object, *, code: int = 1) -> int:
    print(f"caption-service: {error}", file=sys.stderr)
    return code


def _serve(options: argparse.Namespace, settings: Settings) -> int:  # noqa: ARG001
    from app.main import serve  # noqa: PLC0415
    from app.observability.logs import configure_logging  # noqa: PLC0415
    from app.server import CannotListen  # noqa: PLC0415

    configure_logging(settings.log_level)
    try:
        return serve(settings)
    except CannotListen as error:
        return _complain(error)


def _caption(options: argparse.Namespace, settings: Settings) -> int:
    photos = [photo for photo in options.photos if _is_there(photo)]
    if not photos:  # and no network is loaded for that
        return 1
    from app.loading import load_captioner  # noqa: PLC0415

    try:
        captioner = load_captioner(settings)
    except CheckpointError as error:
        return _complain(error)
    show = _show_json if options.json else _show_lines
    told = [_tell(photo, captioner, settings, options.n_best, show) for photo in photos]
    return 0 if all(told) and len(photos) == len(options.photos) else 1


def _is_there(photo: str) -> bool:
    """Say whether there is a file, and tell what is wrong at once where there is none."""
    if photo == _STDIN:
        return True
    if photo.startswith(("http://", "https://")):
        _complain(f"{photo}: expected a file, not a web address: download it first")
        return False
    try:
        is_folder = S_ISDIR(Path(photo).stat().st_mode)
    except (OSError, ValueError) as error:
        _complain(f"{_shown(photo)}: {_reason(error)}")
        return False
    if is_folder:
        _complain(f"{_shown(photo)}: expected a file, not a folder")
    return not is_folder


def _reason(error: Exception) -> object:
    return error.strerror if isinstance(error, OSError) else error


def _tell(
    photo: str, captioner: "Captioner", settings: Settings, n_best: int, show: "Show"
) -> bool:
    """Caption one photo; a bad one is told about and spares the others."""
    try:
        data = sys.stdin.buffer.read() if photo == _STDIN else Path(photo).read_bytes()
        image = captioner.read(data, max_pixels=settings.max_pixels)
    except (OSError, ImageError) as error:
        _complain(f"{_shown(photo)}: {_reason(error)}")
        return False
    show(photo, captioner.caption([image]).captions[0][:n_best])
    return True


def _shown(name: str) -> str:
    """Give a name that moves no cursor: what cannot be printed is escaped."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in name)


def _show_lines(photo: str, candidates: "tuple[Caption, ...]") -> None:
    for caption in candidates:
        print(f"{_shown(photo)}: {caption.text}", flush=True)


def _show_json(photo: str, candidates: "tuple[Caption, ...]") -> None:
    best = candidates[0]
    line = {
        "image": photo,
        "caption": best.text,
        "log_prob": best.log_prob,
        "candidates": [
            {"caption": caption.text, "log_prob": caption.log_prob, "score": caption.score}
            for caption in candidates
        ],
    }
    is_utf_8 = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    print(json.dumps(line, ensure_ascii=not is_utf_8), flush=True)


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
