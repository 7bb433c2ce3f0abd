"""caption-service serve | caption | bulk | healthcheck, and what a terminal expects of each.

Whatever is heavy is imported by the verb that needs it: a health check runs every few seconds.
"""

import argparse
import io
import os
import signal
import sys
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from importlib.metadata import version
from urllib.error import HTTPError

from app.bulk import arguments as bulk_arguments
from app.files import arguments as caption_arguments
from app.settings import KEY_FILES, Settings, SettingsError, read_settings, variable

_PROBE_TIMEOUT_S = 3.0
_EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - recognised here, not bound


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and give the exit code."""
    # numpy's products here are small: threads of its own would take cores by spinning
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
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
    caption = verbs.add_parser("caption", help="caption files and folders of photos")
    caption_arguments.add_arguments(caption)
    bulk = verbs.add_parser("bulk", help="caption collections into files that are resumed")
    bulk_arguments.add_arguments(bulk)
    healthcheck = verbs.add_parser("healthcheck", help="exit 0 when ready, else 1")
    healthcheck.add_argument("--url", help="default: /readyz of CAPTION_HOST and CAPTION_PORT")
    return parser


def _add_serve(serve: argparse.ArgumentParser) -> None:
    """Add a flag for every setting but the keys, which other users of the machine could read."""
    for name, field in Settings.model_fields.items():
        if name not in KEY_FILES:
            told = f"{variable(name)}; default: {_default(field.default)}"
            serve.add_argument(f"--{name.replace('_', '-')}", metavar="VALUE", help=told)


def _default(value: object) -> str:
    return "none" if value in ("", ()) else str(value)


def _flags(options: argparse.Namespace) -> dict[str, str]:
    """Give what flags say of settings, of the verb that has them."""
    if options.verb != "serve":
        return {}
    given = {name: getattr(options, name, None) for name in Settings.model_fields}
    return {name: text for name, text in given.items() if text is not None}


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
    from app.files.command import run  # noqa: PLC0415

    return run(options, settings)


def _bulk(options: argparse.Namespace, settings: Settings) -> int:
    from app.bulk.command import run  # noqa: PLC0415

    return run(options, settings)


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


_VERBS = {"serve": _serve, "caption": _caption, "bulk": _bulk, "healthcheck": _healthcheck}

if __name__ == "__main__":
    sys.exit(main())
