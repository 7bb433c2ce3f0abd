"""A service in a process of its own: ``caption-service serve`` as a person starts it."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

import httpx

TESTS = str(Path(__file__).parents[1])


class Process:
    """A running ``caption-service serve``, or a program that serves in another way.

    Its standard input stays open, and says nothing.
    """

    def __init__(
        self,
        checkpoint: Path | str,
        tmp_path: Path,
        stdout: int | None = None,
        program: str | None = None,
        **settings: Any,
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = httpx.Client(base_url=self.url)
        self.log = tmp_path / "log"
        ours = {"CHECKPOINT": checkpoint, "PORT": self.port, "DEVICE": "cpu"}
        settings = {**ours, "INFERENCE_THREADS": 1, **settings}
        environment = {f"CAPTION_{name}": str(value) for name, value in settings.items()}
        paths = [TESTS, os.environ.get("PYTHONPATH")]  # a program may import from support
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, *(("-c", program) if program else ("-m", "app.cli", "serve"))],
                env={**os.environ, **environment},
                stdin=subprocess.PIPE,
                stdout=log if stdout is None else stdout,
                stderr=subprocess.STDOUT,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait()
        if self.process.stdin:
            self.process.stdin.close()

    def get(self, path: str) -> tuple[int, Any] | None:
        """Give the status and body of a probe; nothing while nobody listens."""
        with contextlib.suppress(httpx.TransportError):
            answer = self.client.get(path)
            return answer.status_code, answer.json()
        return None

    def wait_for(self, path: str, status: int) -> Any:
        ends_s = time.monotonic() + 60
        while time.monotonic() < ends_s and self.process.poll() is None:
            answer = self.get(path)
            if answer and answer[0] == status:
                return answer[1]
            time.sleep(0.05)
        raise AssertionError(f"{path} never said {status}: {self.log.read_text()}")

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]
