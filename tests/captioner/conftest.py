"""One tiny checkpoint for all tests that do not change it."""

import pytest

from app.captioner import checkpoint
from app.captioner.pipeline import Captioner
from support.tiny import save_tiny_checkpoint


@pytest.fixture(scope="session")
def directory(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="session")
def loaded(directory):
    return checkpoint.load(directory)


@pytest.fixture(scope="session")
def captioner(loaded):
    return Captioner.of(loaded, precision="float32")
