"""The servers that are compared: how each is installed, started, asked and stopped."""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import load
import result
from app.captioner.engines.engine import Precision
from app.settings import PROJECT_ROOT, Settings

SERVERS = Path(__file__).resolve().parent / "peers"
OURS = "caption-service"
BALANCED = "haproxy"
ON_RAY = "ray_replicas"
ENGINES = ("plain", "captioner")
MAX_BATCH = 8
STOP_S = 20.0
THREADS = "cores that compute captions"


class Unavailable(Exception):
    """A peer that cannot be measured; the message says why."""


TROUBLE = (Unavailable, OSError, ValueError, subprocess.SubprocessError)
"""What a server can do to us: it becomes a row with the reason, and the others go on."""


@dataclass(frozen=True)
class Peer:
    """How to install and start a server, and what it is asked.

    Attributes:
        packages: for pip; empty for what our own environment has.
        arguments: of the Python that starts it; ``{port}`` is put in.
        path: where captions are asked for.
        form: of the request.
        environment: what its documentation sets for production, and silence.
    """

    packages: tuple[str, ...]
    arguments: tuple[str, ...]
    path: str = "/predict"
    form: Literal["raw", "multipart"] = "multipart"
    environment: tuple[tuple[str, str], ...] = ()


PEERS = {
    "fastapi": Peer((), (str(SERVERS / "fastapi_server.py"),)),
    "litserve": Peer(("litserve",), (str(SERVERS / "litserve_server.py"),)),
    "bentoml": Peer(
        ("bentoml",),
        (
            *("-m", "bentoml", "serve", "bentoml_server:Captions"),
            *("--host", load.HOST, "--port", "{port}"),
        ),
        environment=(("BENTOML_DO_NOT_TRACK", "True"),),
    ),
    "ray": Peer(
        ("ray[serve]",),
        (str(SERVERS / "ray_server.py"),),
        environment=(
            ("RAY_USAGE_STATS_ENABLED", "0"),
            # Ray gives up on its own parts sooner than --start-s says
            ("RAY_gcs_server_port_wait_time_s", "120"),
            ("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "120"),
        ),
    ),
    "mosec": Peer(
        ("mosec",),
        (
            str(SERVERS / "mosec_server.py"),
            *("--address", load.HOST, "--port", "{port}", "--timeout", "{timeout_ms}"),
        ),
        path="/inference",
        form="raw",
    ),
}
SERVICE = {
    OURS: Peer((), ("-m", "app.cli", "serve"), path="/v1/captions"),
    BALANCED: Peer((), (str(SERVERS / "haproxy_server.py"),), path="/v1/captions"),
    ON_RAY: Peer((), (str(SERVERS / "ray_replicas_server.py"),), path="/v1/captions"),
}
"""Ours: one service, several behind HAProxy, and replicas on Ray Serve."""


class Contender(NamedTuple):
    """One server with one engine."""

    name: str
    engine: str


class Conditions(NamedTuple):
    """What is the same for every server of a run.

    Attributes:
        checkpoint: what is served.
        threads: cores that compute, of torch or of our `Captioner`.
        timeout_s: after which a server that can may give a request up.
        start_s: how long a server may take until it answers.
        cache: holds the environments of the peers.
        precision: of our `Captioner`, whoever serves it.
        device: cpu, or as torch names a GPU.
        batch: most images that go through the network together.
        decoders: threads or processes that decode, where a server has such.
        services: of ours, behind HAProxy.
        keys: of callers of our service; we are the first.
    """

    checkpoint: Path
    threads: int
    timeout_s: float
    start_s: float
    cache: Path
    precision: str
    device: str = "cpu"
    batch: int = MAX_BATCH
    decoders: int = 2
    services: int = 1
    keys: tuple[str, ...] = ()


def _peer(name: str) -> Peer:
    return {**PEERS, **SERVICE}[name]


# --- environments -------------------------------------------------------------------------------


def python_of(name: str, cache: Path) -> Path:
    """Give the interpreter of a peer; its environment is made when there is none.

    Raises:
        Unavailable: pip could not install it.
    """
    peer = _peer(name)
    if not peer.packages:
        return Path(sys.executable)
    return environment(name, peer.packages, cache)


def environment(name: str, packages: Sequence[str], cache: Path) -> Path:
    """Give the interpreter of an environment with these packages in front of ours.

    pip resolves them as in an empty environment; afterwards a .pth file adds our own packages, so
    that torch is not installed again.

    Raises:
        Unavailable: pip could not install them.
    """
    home = cache / name
    python, done = home / "bin" / "python", home / "installed"
    if not done.exists():
        tell(f"installing {' '.join(packages)} into {home}")
        _checked([sys.executable, "-m", "venv", "--without-pip", home])
        pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
        _checked([*pip, "install", "--quiet", *packages])
        paths = sysconfig.get_paths(vars={"base": str(home), "platbase": str(home)})
        ours = sysconfig.get_paths()["purelib"]
        Path(paths["purelib"], "ours.pth").write_text(f"{ours}\n", encoding="utf-8")
        done.touch()
    return python


def _checked(command: Sequence[str | Path]) -> None:
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise Unavailable(_last_line(ran.stderr))


def version_of(name: str, python: Path) -> str:
    """Give the installed version of a peer.

    Raises:
        Unavailable: there is no HAProxy.
    """
    if name == BALANCED:
        return _version_of_haproxy()
    package = OURS if name == OURS else (PEERS[name].packages or (name,))[0].partition("[")[0]
    code = f"from importlib.metadata import version; print(version({package!r}))"
    ran = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return ran.stdout.strip() or "?"


def _version_of_haproxy() -> str:
    if shutil.which(BALANCED) is None:
        raise Unavailable("there is no haproxy on the PATH")
    ran = subprocess.run([BALANCED, "-v"], capture_output=True, text=True, check=False)
    return ran.stdout.split()[2]  # HAProxy version 3.2.1-...


# --- servers ------------------------------------------------------------------------------------


class Server(NamedTuple):
    """A server that answers."""

    pid: int
    port: int
    peer: Peer
    keys: tuple[str, ...] = ()

    def posts(self, photos: Sequence[bytes]) -> list[load.Post]:
        """Wrap photos as this server takes them."""
        wrapped = [load.post(photo, self.peer.path, self.peer.form) for photo in photos]
        return [post._replace(headers=load.key(*self.keys[:1])) for post in wrapped]


class Launch(NamedTuple):
    """A command, its whole environment, and the folder it runs in."""

    command: Sequence[str]
    environment: Mapping[str, str]
    folder: Path


@contextmanager
def serving(contender: Contender, conditions: Conditions) -> Iterator[Server]:
    """Start a server, wait for its first caption, stop it and whatever it started.

    Raises:
        Unavailable: it could not be installed, it ended, or it did not answer in time; or we lack
            what ends it.
    """
    peer = _peer(contender.name)
    python = python_of(contender.name, conditions.cache)
    port = load.free_port()
    filled = {"port": port, "timeout_ms": round(conditions.timeout_s * 1e3)}
    command = [str(python), *(argument.format(**filled) for argument in peer.arguments)]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        launch = Launch(
            command,
            {
                **_environment(contender, peer, port, conditions, python),
                **dict.fromkeys(("TMPDIR", "BENTOML_HOME"), folder),
            },
            SERVERS if contender.name == "bentoml" else Path(folder),
        )
        with running(launch, Server(0, port, peer, conditions.keys), conditions.start_s) as server:
            yield server


@contextmanager
def running(launch: Launch, server: Server, start_s: float) -> Iterator[Server]:
    """Start a server, wait for its first caption, stop it and whatever it started.

    Args:
        launch: how to start it.
        server: how to ask it; who it is, is put in.
        start_s: how long it may take until it answers.

    Raises:
        Unavailable: it ended, or it did not answer in time; or we lack what ends it.
    """
    psutil = _psutil()
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log,
        subprocess.Popen(
            launch.command,
            env=launch.environment,
            cwd=launch.folder,
            stdout=log,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        started = server._replace(pid=process.pid)
        try:
            _wait(process, started, start_s, log)
            yield started
        finally:
            _stop(process, psutil)


def _environment(
    contender: Contender, peer: Peer, port: int, conditions: Conditions, python: Path
) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("CAPTION_", "BENCH_"))}
    ours = {
        "CAPTION_PORT": port,
        "CAPTION_CHECKPOINT": conditions.checkpoint,
        "CAPTION_DEVICE": conditions.device,
        "CAPTION_DECODE_PROCESSES": conditions.decoders,
        "CAPTION_PRECISION": conditions.precision,
        "CAPTION_INFERENCE_THREADS": conditions.threads,
        "CAPTION_MAX_BATCH": conditions.batch,
        "CAPTION_DEADLINE_S": conditions.timeout_s,
        "CAPTION_BODY_TIMEOUT_S": min(conditions.timeout_s, 20.0),
        "CAPTION_DRAIN_DELAY_S": 0,
        "CAPTION_API_KEYS": " ".join(conditions.keys),
        "BENCH_SERVICES": conditions.services,
    }
    theirs = {
        "BENCH_ENGINE": contender.engine,
        "BENCH_PORT": port,
        "BENCH_DEVICE": conditions.device,
        "BENCH_BATCH": conditions.batch,
        "BENCH_DECODERS": conditions.decoders,
        "BENCH_CHECKPOINT": conditions.checkpoint,
        "BENCH_THREADS": conditions.threads,
        "BENCH_TIMEOUT_S": conditions.timeout_s,
        "BENCH_PRECISION": conditions.precision,
    }
    settings = ours if contender.name in SERVICE else theirs
    return {
        **kept,
        **{name: str(value) for name, value in settings.items()},
        **dict(peer.environment),
        "PATH": f"{python.parent}{os.pathsep}{kept.get('PATH', '')}",
        "PYTHONPATH": os.pathsep.join((str(PROJECT_ROOT), str(SERVERS))),
    }


def _wait(process: subprocess.Popen[bytes], server: Server, start_s: float, log: Any) -> None:
    """Ask with a small photo until it is captioned."""
    (asking,) = server.posts(load.photos([], 320)[:1])
    until_s, seen = time.monotonic() + start_s, "nobody listens"
    while time.monotonic() < until_s:
        if process.poll() is not None:
            raise Unavailable(f"ended with {process.returncode}: {_tail(log)}")
        try:
            status, body = load.ask(server.port, asking, timeout_s=start_s)
            if status == 200 and load.caption_of(body):
                return
            seen = f"answers {status}: {body[:200]!r}"
        except OSError as error:
            seen = str(error) or type(error).__name__
        time.sleep(0.5)
    raise Unavailable(f"no caption within {start_s:.0f} s: {seen}; it logs: {_tail(log)}")


def _tail(log: Any) -> str:
    log.seek(0)
    return _last_line(log.read())


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "no message")[:300]


def _psutil() -> Any:
    """Import what only who starts a server needs, before there is one to end."""
    try:
        import psutil  # noqa: PLC0415
    except ImportError:
        raise Unavailable("psutil is missing: make bench installs it") from None
    return psutil


def _stop(process: subprocess.Popen[bytes], psutil: Any) -> None:
    """End the tree by its ids: politely, then for good."""
    try:
        tree = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        tree = []
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
    _, alive = psutil.wait_procs(tree, timeout=5)
    for left in alive:
        with suppress(psutil.NoSuchProcess):
            left.kill()


def check_captions(server: Server, photos: Sequence[bytes], expected: Sequence[str]) -> None:
    """Let the server caption each photo.

    Raises:
        Unavailable: it says something else.
    """
    for asking, caption in zip(server.posts(photos), expected, strict=True):
        status, body = load.ask(server.port, asking)
        if status != 200:
            raise Unavailable(f"answered {status}: {body[:200]!r}")
        if load.caption_of(body) != caption:
            raise Unavailable(f"says {load.caption_of(body)!r} instead of {caption!r}")


# --- what every comparison shares ---------------------------------------------------------------


def conditions_of(args: argparse.Namespace, timeout_s: float) -> Conditions:
    """Read from `shared_arguments` what is the same for every server."""
    return Conditions(
        args.checkpoint,
        args.threads,
        timeout_s,
        args.start_s,
        args.cache,
        args.precision,
        args.device,
        args.batch,
        args.decoders,
        args.services,
    )


def contenders_of(
    peers: Sequence[str], engines: Sequence[str], services: int = 1
) -> list[Contender]:
    """Put our service, and several of them, in front of each chosen peer with each engine."""
    ours = [OURS, BALANCED] if services > 1 else [OURS]
    theirs = [Contender(peer, engine) for peer in peers for engine in engines]
    return [*(Contender(name, "captioner") for name in ours), *theirs]


def installed(
    contenders: Sequence[Contender], conditions: Conditions
) -> tuple[dict[str, str], dict[Contender, str]]:
    """Install every peer; give the versions, and the reasons of those that cannot be measured."""
    versions, reasons = {}, {}
    for contender in contenders:
        try:
            python = python_of(contender.name, conditions.cache)
            versions[contender.name] = version_of(contender.name, python)
        except Unavailable as reason:
            reasons[contender] = str(reason)
    return versions, reasons


def stop_servers_when_ended() -> None:
    """Let SIGTERM unwind, as Ctrl-C does, so that no server outlives us."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def tell(progress: str) -> None:
    """Say on stderr how far we are."""
    print(progress, file=sys.stderr, flush=True)


def shared_arguments(description: str | None) -> argparse.ArgumentParser:
    """Make a parser with what every program that compares servers is asked."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("photos", type=Path, nargs="*", metavar="PHOTO", help="default: drawn")
    parser.add_argument("--cache", type=absolute, required=True, help="for the peers' environments")
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--checkpoint", type=absolute, default=PROJECT_ROOT / Settings().checkpoint)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help=THREADS)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--batch", type=int, default=MAX_BATCH, help="of every server, at most")
    parser.add_argument("--decoders", type=int, default=2, help="threads or processes that decode")
    parser.add_argument("--services", type=int, default=1, help="of ours, behind HAProxy as well")
    parser.add_argument("--start-s", type=float, default=300, help="until a server answers")
    add_precision(parser)
    result.add_output(parser)
    return parser


def add_precision(parser: argparse.ArgumentParser) -> None:
    """Declare the precision: one for all, never what the service would choose for this CPU."""
    parser.add_argument(
        "--precision",
        choices=get_args(Precision),
        default="float32",
        help="of our Captioner; plain torch and BLIP compute in float32",
    )


def device_name(device: str) -> str:
    """Name what computes: the GPU, or ``CPU``."""
    if device == "cpu":
        return "CPU"
    import torch  # noqa: PLC0415 - a service on a CPU has none

    return torch.cuda.get_device_name(device)


def absolute(path: str) -> Path:
    """Make a path hold in other folders too: the servers run elsewhere."""
    return Path(path).absolute()
