"""Fixtures that several floors share."""

import os

import pytest


@pytest.fixture(autouse=True)
def no_caption_settings(monkeypatch):
    """Keep the settings of whoever runs the tests out of them."""
    for name in [name for name in os.environ if name.startswith("CAPTION_")]:
        monkeypatch.delenv(name)
