"""HAProxy in front of several of our services, which share threads and decoders out."""

import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.error import URLError

sys.path[:0] = map(str, Path(__file__).resolve().parents[1:3])

import load  # noqa: E402
from app.settings import PROJECT_ROOT  # noqa: E402

CONFIGURATION = PROJECT_ROOT / "deploy" / "balancer" / "haproxy.cfg"
START_S = 300.0


def main() -> None:
    """Serve until told to stop."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    address = f"{load.HOST}:{os.environ['CAPTION_PORT']}"
    with ExitStack() as stack:
        ports = [load.free_port() for _ in range(int(os.environ["BENCH_SERVICES"]))]
        for port in ports:
            stack.enter_context(
                _running([sys.executable, "-m", "app.cli", "serve"], part(port, len(ports)))
            )
        for port in ports:
            _wait_until_ready(port)
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        services = Path(folder, "services.cfg")
        services.write_text(backend(ports), encoding="utf-8")
        command = ["haproxy", "-db", "-f", str(CONFIGURATION), "-f", str(services)]
        metrics = f"{load.HOST}:{load.free_port()}"
        addresses = {"BALANCER_ADDRESS": address, "BALANCER_METRICS_ADDRESS": metrics}
        balancer = stack.enter_context(_running(command, addresses))
        balancer.wait()


def backend(ports: list[int]) -> str:
    """Give the part of the configuration that says who the services are."""
    servers = [f"    server service-{port} {load.HOST}:{port}" for port in ports]
    return "\n".join(["backend services", *servers, ""])


def part(port: int, services: int) -> dict[str, str]:
    """Give a service its part of the machine."""
    shared = ("CAPTION_INFERENCE_THREADS", "CAPTION_DECODE_PROCESSES")
    parts = {name: str(max(1, int(os.environ[name]) // services)) for name in shared}
    return {**parts, "CAPTION_PORT": str(port)}


@contextmanager
def _running(
    command: list[str], environment: dict[str, str]
) -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(command, env={**os.environ, **environment}) as process:
        try:
            yield process
        finally:
            process.terminate()


def _wait_until_ready(port: int) -> None:
    ends_s = time.monotonic() + START_S
    while time.monotonic() < ends_s:
        try:
            urllib.request.urlopen(f"http://{load.HOST}:{port}/readyz", timeout=5).close()
        except (URLError, OSError):
            time.sleep(0.2)
        else:
            return
    raise SystemExit(f"a service was not ready within {START_S:.0f} s")


if __name__ == "__main__":
    main()
