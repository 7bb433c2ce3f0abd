"""What a device does to us, in our words."""

import gc
import os
import threading
import weakref
from contextlib import contextmanager

import pytest
import torch

from app.captioner import device
from app.captioner.errors import DeviceFault, OutOfMemory


def failing(error):
    def job():
        raise error

    return job


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_too_little_memory_is_out_of_memory(error):
    with pytest.raises(OutOfMemory):
        device.guarded(failing(error))


def test_the_real_allocator_says_it_in_these_words():
    with pytest.raises(OutOfMemory):
        device.guarded(lambda: torch.empty(2**62, dtype=torch.uint8))


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        RuntimeError("CUDA error: device-side assert triggered"),
    ],
)
def test_a_device_that_failed_for_good_is_a_fault(error):
    with pytest.raises(DeviceFault):
        device.guarded(failing(error))


def test_other_errors_are_not_the_fault_of_the_device():
    with pytest.raises(RuntimeError, match="sizes differ"):
        device.guarded(failing(RuntimeError("sizes differ")))
    assert device.guarded(lambda: 3) == 3


def test_out_of_memory_lets_go_of_what_the_job_held(monkeypatch):
    """The frames of an exception keep its tensors; the cache could not be emptied of them."""
    held = []

    def job():
        tensor = torch.zeros(3)
        held.append(weakref.ref(tensor))
        raise torch.OutOfMemoryError

    alive = []
    monkeypatch.setattr(device, "_empty_cache", lambda: alive.append(held[0]() is not None))
    gc.disable()
    try:
        with pytest.raises(OutOfMemory):
            device.guarded(job)
    finally:
        gc.enable()
    assert alive == [False]


@contextmanager
def shared(cores, *, alone=True):
    with cores.granted(alone=alone) as share, device.limited_to(share):
        yield


def in_a_thread(cores, seen):
    def call():
        with shared(cores):
            seen.append(torch.get_num_threads())

    thread = threading.Thread(target=call)
    thread.start()
    return thread


def test_a_lone_call_gets_all_cores_and_another_waits_for_its_end():
    before = torch.get_num_threads()
    cores, seen = device.Cores(4), []
    with shared(cores):
        seen.append(torch.get_num_threads())
        other = in_a_thread(cores, seen)
        other.join(0.05)
        assert seen == [4]
    other.join(10)
    assert seen == [4, 1]  # alone by now, but not the first
    assert torch.get_num_threads() == before
    with shared(cores):
        assert torch.get_num_threads() == 4


def test_calls_side_by_side_get_one_core_each():
    cores, seen = device.Cores(4), []
    with shared(cores, alone=False):
        other = in_a_thread(cores, seen)
        other.join(10)
        assert torch.get_num_threads() == 1
    assert seen == [1]


MINE = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def where_two_calls_run(cores):
    seen = []

    def call():
        with shared(cores, alone=False):
            seen.append(sorted(os.sched_getaffinity(0)))

    with shared(cores, alone=False):
        seen.append(sorted(os.sched_getaffinity(0)))
        other = threading.Thread(target=call)
        other.start()
        other.join(10)
    return seen


@pytest.mark.skipif(len(MINE) < 2, reason="wants two cores, and a system that lets threads choose")
def test_calls_side_by_side_keep_to_cores_of_their_own():
    cores = device.Cores(len(MINE))
    assert where_two_calls_run(cores) == [[MINE[0]], [MINE[1]]]
    assert sorted(os.sched_getaffinity(0)) == MINE
    assert where_two_calls_run(cores) == [[MINE[0]], [MINE[1]]]
    with shared(cores):
        assert sorted(os.sched_getaffinity(0)) == MINE


@pytest.mark.skipif(not MINE, reason="this system lets no thread choose")
def test_cores_that_others_may_use_too_are_left_to_the_scheduler(monkeypatch):
    assert where_two_calls_run(device.Cores(len(MINE) + 1)) == [MINE, MINE]

    def refused(_pid, _cores):
        raise PermissionError

    cores = device.Cores(len(MINE))
    monkeypatch.setattr(os, "sched_setaffinity", refused)
    assert where_two_calls_run(cores) == [MINE, MINE]


def test_a_call_that_fails_gives_its_cores_back():
    cores = device.Cores(3)
    with pytest.raises(ValueError, match="broken"), shared(cores):
        raise ValueError("broken")
    with shared(cores):
        assert torch.get_num_threads() == 3


def test_a_thread_that_takes_one_core_keeps_to_it_whatever_others_do():
    seen = []

    def decoding():
        device.take_one_core()
        others = threading.Thread(target=torch.set_num_threads, args=(3,))
        others.start()
        others.join()
        torch.ones(100_000).sum()
        seen.append(torch.get_num_threads())

    thread = threading.Thread(target=decoding)
    thread.start()
    thread.join()
    assert seen == [1]


def test_a_call_that_is_not_alone_in_the_process_gets_one_core():
    cores = device.Cores(4)
    with shared(cores, alone=False):
        assert torch.get_num_threads() == 1
    with shared(cores):
        assert torch.get_num_threads() == 4
