"""Fixtures that several rooms share."""

import os
import socket
import threading
import time
from contextlib import contextmanager

import pytest
import structlog


@pytest.fixture(scope="session", autouse=True)
def plain_logs():
    """Log as the service does; the default draws every traceback in colour, which takes seconds."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(),
        ]
    )


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    """Keep the settings of whoever runs the tests out of them."""
    for name in [name for name in os.environ if name.startswith(("CAPTION_", "OTEL_"))]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Give the directory of a tiny checkpoint that can be served; nobody writes into it."""
    from support.tiny import save_tiny_checkpoint  # noqa: PLC0415 - brings torch

    return save_tiny_checkpoint(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def url():
    """Serve the fake captioner on a real socket; it says of an image what its bytes say."""
    from support.fake import FakeCaptioner  # noqa: PLC0415 - as below

    with _served(FakeCaptioner()) as address:
        yield address


@pytest.fixture(scope="module")
def colours_url():
    """Serve on a real socket a captioner that says of a picture which colour it has."""
    from support.colours import ColourCaptioner  # noqa: PLC0415 - as below

    with _served(ColourCaptioner()) as address:
        yield address


@contextmanager
def _served(captioner):
    import uvicorn  # noqa: PLC0415 - what the tests of the trainer need not load

    from app.main import create_app  # noqa: PLC0415
    from app.settings import Settings  # noqa: PLC0415

    app = create_app(Settings(), captioners=[captioner])
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none"))
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    while not app.state.app_state.health.readyz().ok:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
