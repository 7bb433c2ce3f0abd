"""A service on a real socket, for the clients that other services' users have."""

import socket
import threading
import time

import pytest
import uvicorn

from app.main import create_app
from app.settings import Settings
from support.fake import FakeCaptioner


@pytest.fixture(scope="module")
def url():
    """Serve the fake captioner, which says of an image what its bytes say."""
    app = create_app(Settings(), captioner=FakeCaptioner())
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none"))
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    while not app.state.app_state.health.readyz().ok:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join()
