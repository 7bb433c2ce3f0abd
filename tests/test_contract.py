"""The service against its own OpenAPI: odd requests, and no answer that it did not promise."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

PROMISES = [
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
POSTED = {"/v1/captions", "/v1/clips", "/v1/admin/reload", "/v1/admin/canary"}
PROBES = {"/livez", "/startupz", "/readyz", "/healthz"}
PATHS = sorted({*POSTED, *PROBES, "/v1/models", "/metrics"})


@pytest.fixture(scope="module")
def served(url):
    """Give the base URL of a service on a real socket, and its description."""
    return url, schemathesis.openapi.from_url(f"{url}/openapi.json")


@pytest.mark.parametrize("path", PATHS)
def test_no_answer_that_was_not_promised(served, path):
    url, description = served
    operation = description[path]["POST" if path in POSTED else "GET"]

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
