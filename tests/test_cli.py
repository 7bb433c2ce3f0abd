"""The verbs, with a tiny real checkpoint, and the life of the process."""

import asyncio
import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import version

import httpx
import pytest

from app.cli import main
from app.settings import Settings
from support.photos import photo
from support.processes import descendants, is_running, wants_proc
from support.service_process import Process


@pytest.fixture
def photos(tmp_path):
    files = [tmp_path / "one.png", tmp_path / "two.png"]
    for seed, file in enumerate(files):
        file.write_bytes(photo(seed))
    return files


# caption


def test_caption_says_one_line_per_photo(checkpoint, photos, monkeypatch, capsys):
    monkeypatch.setenv("CAPTION_CHECKPOINT", str(checkpoint))
    assert main(["caption", *map(str, photos)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in lines] == [str(file) for file in photos]
    assert all(line.partition(": ")[2] for line in lines)


def test_a_bad_photo_fails_alone(checkpoint, photos, tmp_path, monkeypatch, capsys):
    broken = tmp_path / "broken.png"
    broken.write_bytes(photo()[:200])
    monkeypatch.setenv("CAPTION_CHECKPOINT", str(checkpoint))
    assert main(["caption", str(broken), "nowhere.png", *map(str, photos)]) == 1
    told = capsys.readouterr()
    assert len(told.out.splitlines()) == 2
    first, second = told.err.splitlines()
    assert "nowhere.png: No such file" in first  # before the network is loaded
    assert str(broken) in second


def test_caption_takes_the_options_of_the_service(checkpoint, photos, monkeypatch, capsys):
    monkeypatch.setenv("CAPTION_CHECKPOINT", str(checkpoint))
    options = ["--style", "alt", "--neutral", "--tags", "--min-confidence", "0.9"]
    assert main(["caption", *options, str(photos[0])]) == 0  # no confidence model: it is told
    said = capsys.readouterr().out.strip().removeprefix(f"{photos[0]}: ")
    assert said[0].isupper()
    with pytest.raises(SystemExit, match="2"):
        main(["caption", "--min-confidence", "2", str(photos[0])])


def test_json_lines_carry_the_candidates(checkpoint, photos, monkeypatch, capsys):
    monkeypatch.setenv("CAPTION_CHECKPOINT", str(checkpoint))
    assert main(["caption", "--json", "--n-best", "2", str(photos[0])]) == 0
    line = json.loads(capsys.readouterr().out)
    assert line["image"] == str(photos[0])
    assert line["caption"] == line["candidates"][0]["caption"]
    assert len(line["candidates"]) == 2


def test_a_checkpoint_that_is_not_there_is_an_error_with_its_name(photos, monkeypatch, capsys):
    monkeypatch.setenv("CAPTION_CHECKPOINT", "/nowhere/1")
    assert main(["caption", str(photos[0])]) == 1
    assert "/nowhere/1" in capsys.readouterr().err


def test_a_wrong_setting_is_an_error_of_every_verb(monkeypatch, capsys):
    monkeypatch.setenv("CAPTION_PORT", "http")
    for verb in (["serve"], ["caption", "a.jpg"], ["healthcheck"]):
        assert main(verb) == 2
        assert "CAPTION_PORT" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["caption"], ["caption", "--n-best", "0", "a.jpg"]])
def test_a_wrong_command_line_is_an_error(arguments):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2


@pytest.mark.parametrize("text", ["three", "0", "-1", "1.5", "²", ""])
def test_a_number_that_is_none_is_told_in_words(text, capsys):
    with pytest.raises(SystemExit):
        main(["caption", f"--n-best={text}", "a.jpg"])
    assert "expected a whole number of at least 1" in capsys.readouterr().err


def test_standard_input_is_a_photo_too(checkpoint, monkeypatch, capsys):
    monkeypatch.setenv("CAPTION_CHECKPOINT", str(checkpoint))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(photo())))
    assert main(["caption", "-"]) == 0
    assert capsys.readouterr().out.startswith("-: ")


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("missing.jpg", "missing.jpg: No such file or directory"),
        ("https://photos.example//a.jpg", "https://photos.example//a.jpg: expected a file"),
        ("a\0b", "a\\x00b: "),
        ("a\x1b[31m.jpg", "a\\x1b[31m.jpg: No such file"),
    ],
)
def test_what_is_no_file_is_told_as_it_was_typed_and_before_the_network_is_loaded(
    typed, told, monkeypatch, capsys
):
    monkeypatch.setattr("app.loading.load_captioner", None)
    assert main(["caption", typed]) == 1
    assert told in capsys.readouterr().err


def run(*arguments, checkpoint="", **options):
    environment = {**os.environ, "CAPTION_CHECKPOINT": str(checkpoint), "CAPTION_DEVICE": "cpu"}
    return subprocess.Popen(
        [sys.executable, "-m", "app.cli", *arguments],
        env={**environment, **options.pop("env", {})},
        stderr=subprocess.PIPE,
        **{"stdout": subprocess.PIPE, **options},
    )


def test_a_reader_who_has_had_enough_is_no_error(checkpoint, photos):
    read, written = os.pipe()
    with run("caption", *map(str, photos), checkpoint=checkpoint, stdout=written) as command:
        os.close(written)
        os.close(read)
        _, told = command.communicate(timeout=60)
    assert (command.returncode, told) == (128 + signal.SIGPIPE, b"")


def test_an_interrupt_is_no_traceback(checkpoint):
    with run("caption", "-", checkpoint=checkpoint, stdin=subprocess.PIPE) as command:
        time.sleep(5)  # it loads, then waits for the photo
        command.send_signal(signal.SIGINT)
        _, told = command.communicate(timeout=60)
    assert (command.returncode, told) == (130, b"")


@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "latin-1"])
def test_a_name_that_the_terminal_cannot_show_is_escaped(checkpoint, tmp_path, encoding):
    name = os.fsencode(tmp_path) + "/\u732b".encode() + b"\xff.png"
    with open(name, "wb") as file:  # noqa: PTH123 - pathlib has no names in bytes
        file.write(photo())
    env = {"PYTHONIOENCODING": encoding}
    for more in ([], ["--json"]):
        with run("caption", *more, name, checkpoint=checkpoint, env=env) as command:
            out, told = command.communicate(timeout=60)
        assert (command.returncode, told) == (0, b"")
        assert rb"\udcff.png" in out
    line = json.loads(out.decode(encoding))
    assert os.fsencode(line["image"]) == name


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"caption-service {version('caption-service')}\n"


def test_every_setting_but_the_keys_is_a_flag_that_wins(monkeypatch, capsys):
    served = []
    monkeypatch.setattr("app.main.serve", lambda settings: served.append(settings) or 0)
    monkeypatch.setattr("app.observability.logs.configure_logging", lambda _: None)
    monkeypatch.setenv("CAPTION_PORT", "9000")
    monkeypatch.setenv("CAPTION_MAX_IMAGES", "3")
    assert main(["serve", "--port", "9001", "--cors-origins", "https://a.example"]) == 0
    (settings,) = served
    assert (settings.port, settings.max_images) == (9001, 3)
    assert settings.cors_origins == ("https://a.example",)
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    told = capsys.readouterr().out
    secret = {"--api-keys", "--admin-keys"}
    flags = {f"--{name.replace('_', '-')}" for name in Settings.model_fields} - secret
    assert all(f"{flag} VALUE" in told for flag in flags)
    assert not [flag for flag in secret if flag in told]


def test_a_wrong_flag_is_told_by_its_name(capsys):
    assert main(["serve", "--port", "http"]) == 2
    assert "--port: " in capsys.readouterr().err


# healthcheck


@contextlib.contextmanager
def answering(status):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status if self.path == "/readyz" else 404)
            self.end_headers()
            self.wfile.write(b'{"status":"said"}')

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        yield server.server_address[1]
        thread.join()


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1), (404, 1)])
def test_healthcheck_asks_readyz_on_our_port(status, code, monkeypatch, capsys):
    with answering(status) as port:
        monkeypatch.setenv("CAPTION_PORT", str(port))
        monkeypatch.setenv("CAPTION_HOST", "0.0.0.0")  # noqa: S104 - what a container sets
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
        assert main(["healthcheck"]) == code
    assert "said" in capsys.readouterr().out


def test_healthcheck_of_nobody_is_unhealthy(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert main(["healthcheck", "--url", f"http://127.0.0.1:{port}/readyz"]) == 1
    assert "refused" in capsys.readouterr().err


def test_healthcheck_asks_nothing_but_http():
    assert main(["healthcheck", "--url", "file:///etc/passwd"]) == 2


# serve


def test_a_served_photo_gets_a_caption_and_sigterm_ends_it_with_zero(checkpoint, tmp_path):
    with Process(checkpoint, tmp_path, DRAIN_DELAY_S=0) as service:
        service.wait_for("/readyz", 200)
        answer = service.client.post("/v1/captions", files={"image": ("a.png", photo())})
        assert answer.status_code == 200
        assert answer.json()["results"][0]["caption"]
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(20) == 0
        events = service.events()
    assert {"settings", "ready", "request", "draining"} <= {event["event"] for event in events}


def test_while_draining_it_is_not_ready_but_loses_no_request(checkpoint, tmp_path):
    with Process(checkpoint, tmp_path, DRAIN_DELAY_S=2) as service:
        service.wait_for("/readyz", 200)
        statuses = asyncio.run(_post_until_closed(service))
        assert service.process.wait(20) == 0
    assert statuses[0] == 200
    assert set(statuses) <= {200, 503}


async def _post_until_closed(service):
    statuses = []
    service.process.send_signal(signal.SIGTERM)
    async with httpx.AsyncClient(base_url=service.url) as client:
        while (await client.get("/readyz")).status_code == 200:  # noqa: ASYNC110 - over HTTP
            await asyncio.sleep(0.01)
        # Nobody listens any more, or the kept connection was closed while we wrote into it.
        with contextlib.suppress(httpx.ConnectError, httpx.ReadError, httpx.WriteError):
            while True:
                answer = await client.post("/v1/captions", files={"image": ("a.png", photo())})
                statuses.append(answer.status_code)
    return statuses


def test_the_second_sigterm_ends_it_now(checkpoint, tmp_path):
    with Process(checkpoint, tmp_path, DRAIN_DELAY_S=60) as service:
        service.wait_for("/readyz", 200)
        service.process.send_signal(signal.SIGTERM)
        service.wait_for("/readyz", 503)
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(5) == 128 + signal.SIGTERM


def test_a_checkpoint_that_cannot_be_loaded_ends_it_with_the_reason(tmp_path):
    with Process(tmp_path / "nowhere", tmp_path) as service:
        said = service.wait_for("/livez", 503)
        assert said == {"status": "failed", "reason": "checkpoint_refused"}
        assert service.process.wait(20) == 1
        (refused,) = [one for one in service.events() if one["event"] == "checkpoint_refused"]
    assert "nowhere" in refused["reason"]


@wants_proc
def test_a_signal_to_all_its_processes_drains_it_and_leaves_none(checkpoint, tmp_path):
    with Process(checkpoint, tmp_path, DRAIN_DELAY_S=1) as service:
        service.wait_for("/readyz", 200)
        started = descendants(service.process.pid)
        assert len(started) >= 2
        for pid in started:  # as systemd does
            os.kill(pid, signal.SIGTERM)
        statuses = asyncio.run(_post_until_closed(service))
        assert service.process.wait(20) == 0
    assert statuses[0] == 200
    assert set(statuses) <= {200, 503}
    assert_none_is_left(started)


def assert_none_is_left(pids):
    ends_s = time.monotonic() + 10
    while any(map(is_running, pids)) and time.monotonic() < ends_s:
        time.sleep(0.05)
    assert not any(map(is_running, pids))


@contextlib.contextmanager
def stopped(pids):
    """Stop processes; whatever comes of it, none is left that way."""
    send_to_all(signal.SIGSTOP, pids)
    try:
        yield pids
        assert_none_is_left(pids)
    finally:
        send_to_all(signal.SIGKILL, filter(is_running, pids))


def send_to_all(number, pids):
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


@wants_proc
def test_with_all_its_processes_stopped_and_its_log_gone_sigterm_still_drains_it(
    checkpoint, tmp_path
):
    read, write = os.pipe()
    with Process(checkpoint, tmp_path, stdout=write, DRAIN_DELAY_S=0) as service:
        os.close(write)
        service.wait_for("/readyz", 200)
        os.close(read)
        started = descendants(service.process.pid)
        answer = service.client.post("/v1/captions", files={"image": ("a.png", photo())})
        assert answer.status_code == 200
        with stopped(started):
            service.process.send_signal(signal.SIGTERM)
            assert service.process.wait(60) == 0


HANGING = """
import sys
from app import cli, main
from support.fake import FakeCaptioner

captioner = FakeCaptioner()
captioner.caption = lambda *_: sys.stdin.read()  # for ever
main.CheckpointStore.load = lambda *_: captioner
sys.exit(cli.main(["serve"]))
"""


def test_a_batch_that_hangs_ends_it(tmp_path):
    settings = {"STUCK_AFTER_S": 2, "DEADLINE_S": 60}
    with Process("", tmp_path, program=HANGING, **settings) as service:
        service.wait_for("/readyz", 200)
        with sending_a_photo(service.port):
            said = service.wait_for("/livez", 503)
            assert said == {"status": "failed", "reason": "inference_thread_stuck"}
            assert service.process.wait(60) == 1
        events = [event["event"] for event in service.events()]
    assert {"giving_up", "inference_thread_left_behind"} <= set(events)


@contextlib.contextmanager
def sending_a_photo(port):
    body = photo()
    head = (
        "POST /v1/captions HTTP/1.1\r\nhost: a\r\n"
        f"content-type: image/png\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", port)) as caller:
        caller.sendall(head.encode() + body)
        yield


def test_a_port_that_is_taken_ends_it(checkpoint, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with Process(checkpoint, tmp_path, PORT=port) as service:
            assert service.process.wait(30) == 1
        assert f"127.0.0.1 port {port} is taken by another program" in service.log.read_text()


def test_numpy_gets_no_threads_of_its_own():
    """They would spin between two small products, and take a fifth of the captions."""
    told = (
        "import os, sys, app.cli\n"
        "before = 'numpy' in sys.modules\n"
        "try:\n    app.cli.main(['--version'])\nexcept SystemExit:\n    pass\n"
        "print(before, os.environ['OPENBLAS_NUM_THREADS'])"
    )
    environment = {k: v for k, v in os.environ.items() if k != "OPENBLAS_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", told], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[-2:] == ["False", "1"]
