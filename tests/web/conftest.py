"""What the tests of the web layer share."""

import pytest


@pytest.fixture(autouse=True)
def short_linger(monkeypatch):
    """Wait only briefly for the rest of a refused body, which these tests never send."""
    monkeypatch.setattr("app.web.body._LINGER_S", 0.1)
