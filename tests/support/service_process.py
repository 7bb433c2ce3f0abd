"""A service in a process of its own: ``caption-service serve`` as a person starts it."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time

import httpx


class Process:
    """A running ``caption-service serve``."""

    def __init__(self, checkpoint, tmp_path, stdout=None, **settings):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = httpx.Client(base_url=self.url)
        self.log = tmp_path / "log"
        ours = {"CHECKPOINT": checkpoint, "PORT": self.port, "DEVICE": "cpu", "TORCH_THREADS": 1}
        environment = {
            f"CAPTION_{name}": str(value) for name, value in {**ours, **settings}.items()
        }
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "app.cli", "serve"],
                env={**os.environ, **environment},
                stdout=log if stdout is None else stdout,
                stderr=subprocess.STDOUT,
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.close()
        self.process.kill()
        self.process.wait()

    def get(self, path):
        """Give the status and body of a probe; nothing while nobody listens."""
        with contextlib.suppress(httpx.TransportError):
            answer = self.client.get(path)
            return answer.status_code, answer.json()
        return None

    def wait_for(self, path, status):
        ends_s = time.monotonic() + 60
        while time.monotonic() < ends_s and self.process.poll() is None:
            answer = self.get(path)
            if answer and answer[0] == status:
                return answer[1]
            time.sleep(0.05)
        raise AssertionError(f"{path} never said {status}: {self.log.read_text()}")

    def events(self):
        return [json.loads(line) for line in self.log.read_text().splitlines()]
