"""The service against its own OpenAPI: odd requests, and no answer that it did not promise."""

import socket
import threading
import time

import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from app.main import create_app
from app.settings import Settings
from support.fake import FakeCaptioner

PROMISES = [
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
PATHS = ["/v1/captions", "/v1/models", "/livez", "/startupz", "/readyz", "/healthz", "/metrics"]


@pytest.fixture(scope="module")
def served():
    """Serve in a thread, on a real socket; give the base URL and the description."""
    app = create_app(Settings(), captioner=FakeCaptioner())
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none"))
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    while not app.state.app_state.health.readyz().ok:
        time.sleep(0.01)
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    yield url, schemathesis.openapi.from_url(f"{url}/openapi.json")
    server.should_exit = True
    thread.join()


@pytest.mark.parametrize("path", PATHS)
def test_no_answer_that_was_not_promised(served, path):
    url, description = served
    operation = description[path]["POST" if path == "/v1/captions" else "GET"]

    @given(case=operation.as_strategy())
    @settings(
        max_examples=60 if path == "/v1/captions" else 5,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    def ask(case):
        answer = case.call_and_validate(base_url=url, checks=PROMISES)
        assert answer.status_code != 500  # promised, and only for what is our fault

    ask()


def test_every_operation_is_asked(served):
    assert set(served[1]) == set(PATHS)
