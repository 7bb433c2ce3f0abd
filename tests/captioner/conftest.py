"""A tiny checkpoint, and a captioner that has it in lanes."""

import pytest

from app.captioner.pipeline import Captioner
from support.tiny import save_tiny_checkpoint


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return save_tiny_checkpoint(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def apart(directory):
    """Two lanes, batches of four at most."""
    captioner = Captioner.load_in_lanes(directory, precision="float32", cores=2, most_images=4)
    yield captioner
    captioner.close()
