"""What happens to a worker whose batch does not fit."""

import numpy as np
import pytest

from app.captioner.engines.cpu import CpuEngine
from app.captioner.errors import OutOfMemory
from app.captioner.search import always_waiting
from support.tiny import SIZE_PX, as_loaded, tiny_unpublished

SQUARES = [np.zeros((SIZE_PX, SIZE_PX, 3), np.uint8)]


@pytest.fixture(scope="module")
def engine():
    return CpuEngine(as_loaded(tiny_unpublished()), precision="float32", workers=1)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError("std::bad_alloc"), OutOfMemory),
        (
            RuntimeError("Exception from src/inference: Can not allocate 2147483648 bytes"),
            OutOfMemory,
        ),
        (RuntimeError("shapes differ"), RuntimeError),
    ],
)
def test_too_little_memory_is_out_of_memory_and_the_worker_goes_on(
    engine, monkeypatch, error, expected
):
    def fail(inputs):
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(engine._workers[0]._encode, "run", fail)
        with pytest.raises(expected):
            engine.run(SQUARES, always_waiting)
    assert engine.run(SQUARES, always_waiting).images == [0]
