"""On a CPU neither torch nor torchvision is imported, or their libraries mapped."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support.photos import photo
from support.processes import descendants, wants_proc
from support.service_process import Process

# Runs a verb, then writes down the top-level modules that it imported.
PROGRAM = """
import json, sys
from pathlib import Path
from app.cli import main

code = main({arguments})
modules = sorted({{name.partition(".")[0] for name, one in sys.modules.items() if one}})
maps = Path("/proc/self/maps")
mapped = maps.read_text() if maps.exists() else ""
Path({found!r}).write_text(json.dumps({{"modules": modules, "mapped": mapped}}))
sys.exit(code)
"""
TORCH = {"torch", "torchvision"}


def program(tmp_path, *arguments):
    found = tmp_path / "found.json"
    return PROGRAM.format(arguments=list(map(str, arguments)), found=str(found)), found


def read(found):
    """Give the modules and the mapped files of a process that has ended."""
    told = json.loads(found.read_text())
    return set(told["modules"]), told["mapped"]


def run(text, **settings):
    environment = {**os.environ, **settings}
    return subprocess.run(
        [sys.executable, "-c", text], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("verb", ["caption", "bulk"])
def test_captions_of_files_are_made_without_torch(verb, checkpoint, tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(photo())
    output = ("--output", tmp_path / "captions") if verb == "bulk" else ()
    text, found = program(tmp_path, verb, file, *output)
    done = run(text, CAPTION_CHECKPOINT=str(checkpoint), CAPTION_DEVICE="cpu")
    assert done.returncode == 0, done.stderr
    modules, mapped = read(found)
    assert "openvino" in modules
    assert not modules & TORCH
    assert "libtorch" not in mapped


def test_healthcheck_runs_without_torch_the_engine_or_the_server(tmp_path):
    text, found = program(tmp_path, "healthcheck", "--url", "http://127.0.0.1:1")
    assert run(text).returncode == 1
    modules, mapped = read(found)
    assert "app" in modules
    assert not modules & (TORCH | {"openvino", "numpy", "fastapi", "uvicorn"})
    assert "libtorch" not in mapped


@wants_proc
def test_serve_runs_without_torch(checkpoint, tmp_path):
    text, found = program(tmp_path, "serve")
    with Process(checkpoint, tmp_path, program=text, DRAIN_DELAY_S=0) as service:
        service.wait_for("/readyz", 200)
        for kind in ("PNG", "JPEG"):  # decoded in a process, and in the batch
            files = {"image": (f"a.{kind}", photo(kind=kind))}
            assert service.client.post("/v1/captions", files=files).status_code == 200
        processes = descendants(service.process.pid)
        assert processes
        for pid in processes:
            assert "libtorch" not in Path(f"/proc/{pid}/maps").read_text()
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(60) == 0
    modules, mapped = read(found)
    assert "openvino" in modules
    assert "libopenvino" in mapped
    assert not modules & TORCH
    assert "libtorch" not in mapped
