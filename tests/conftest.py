"""Fixtures that several rooms share."""

import os

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
