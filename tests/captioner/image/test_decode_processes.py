"""Decode processes, with real images and with decoders that misbehave."""

import io
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.captioner.errors import (
    ImageTooLarge,
    NoDecoder,
    TooCostly,
    UndecodableImage,
    UnsupportedImage,
)
from app.captioner.image import decode, decode_processes
from app.captioner.image.decode_processes import DecodeProcesses
from support.processes import is_running, wants_proc
from support.tiny import slow_png

MAX_PIXELS = 40_000_000
LIMITS = {"at_least_px": 64, "max_pixels": MAX_PIXELS}


class News(list):
    """What a watcher heard."""

    def __init__(self):
        super().__init__()
        self.absences = []

    def ended(self, reason):
        self.append(reason)

    def absent(self, error):
        self.absences.append(error)


def saved(width=60, height=40, kind="PNG", mode="RGB", seed=0, **options):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 4), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(file, kind, **options)
    return file.getvalue()


SMALL = saved()


COSTLY = slow_png()


@pytest.fixture
def news():
    return News()


@pytest.fixture
def pool(news):
    with_defaults = []

    def make(count=1, *, budget_s=20.0, max_bytes=10**7, max_pixels=MAX_PIXELS):
        limits = {"max_bytes": max_bytes, "max_pixels": max_pixels}
        made = DecodeProcesses(count, budget_s=budget_s, watcher=news, **limits)
        with_defaults.append(made)
        made.start()
        made.wait()
        until(lambda: len(made._idle) == count)
        return made

    yield make
    for each in with_defaults:
        each.close()


def until(condition):
    ends_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < ends_s
        time.sleep(0.01)


def pids(pool):
    return [each._child.pid for each in (*pool._idle, *pool._busy)]


def under_way(pool, data, **options):
    """Decode in a thread; give its future once a process has the upload."""
    threads = ThreadPoolExecutor(1)
    job = threads.submit(pool.decode, data, **LIMITS, **options)
    threads.shutdown(wait=False)
    until(lambda: pool._busy or job.done())
    time.sleep(0.1)
    return job


@pytest.mark.parametrize(
    "data",
    [
        SMALL,
        saved(kind="JPEG", mode="L"),
        saved(kind="JPEG", progressive=True),
        saved(kind="WEBP", mode="RGBA"),
        saved(900, 700),  # comes back in memory of its own
        saved(1, 3000),
    ],
)
def test_pixels_are_those_of_the_decoder_in_this_process(pool, data):
    pixels_HWC = pool().decode(data, **LIMITS)
    assert np.array_equal(pixels_HWC, decode.decode(data, **LIMITS))
    assert pixels_HWC.flags.writeable  # or torch would warn


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"GIF89a", UndecodableImage),
        (b"%PDF-1.7", UnsupportedImage),
        (SMALL[:-40], UndecodableImage),
        (saved(kind="JPEG")[:200], UndecodableImage),
        (saved(200, 100), ImageTooLarge),
        (b"", UndecodableImage),
    ],
)
def test_what_is_at_fault_is_refused_in_the_same_words_and_costs_no_process(
    pool, news, data, error
):
    few = {**LIMITS, "max_pixels": 10_000}
    here = pool()
    (before,) = pids(here)
    with pytest.raises(error) as there:
        here.decode(data, **few)
    with pytest.raises(error) as expected:
        decode.decode(data, **few)
    assert str(there.value) == str(expected.value)
    assert there.value.limit == expected.value.limit
    assert here.decode(SMALL, **few).shape == (40, 60, 3)
    assert (pids(here), news) == ([before], [])


def test_an_image_over_its_budget_is_refused_and_the_next_is_decoded(pool, news):
    short = pool(budget_s=0.2)
    with pytest.raises(TooCostly):
        short.decode(COSTLY, **LIMITS)
    assert news == ["over_budget"]
    assert short.decode(SMALL, **LIMITS).shape == (40, 60, 3)


def test_a_budget_is_for_one_image_not_for_all_that_a_process_decodes(pool, news):
    data = saved(500, 500)
    began_s = time.process_time()
    decode.decode(data, **LIMITS)
    once_s = time.process_time() - began_s
    here = pool(budget_s=20 * once_s)
    for _ in range(40):
        here.decode(data, **LIMITS)
    assert news == []


def test_an_image_that_needs_too_much_memory_is_refused_and_the_next_is_decoded(pool, news):
    tight = pool(max_pixels=100)
    with pytest.raises(TooCostly):
        tight.decode(COSTLY, **LIMITS)
    assert tight.decode(SMALL, **LIMITS).shape == (40, 60, 3)
    assert news == []


@pytest.mark.long
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "L", "I;16"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_memory_is_enough_for_the_largest_image_of_every_kind(pool, mode, orientation):
    few = 12_000_000
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    options = {"transparency": 0} if mode in {"L", "P", "I;16"} else {}
    Image.new(mode, (4000, 3000)).save(file, "PNG", compress_level=1, exif=exif, **options)
    here = pool(max_pixels=few)
    assert here.decode(file.getvalue(), at_least_px=4000, max_pixels=few).ndim == 3


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "mode"),
    [("GIF", "P"), ("BMP", "RGB"), ("TIFF", "RGBA"), ("TIFF", "CMYK"), ("AVIF", "RGBA"),
     ("HEIF", "RGB")],
)  # fmt: skip
def test_memory_is_enough_for_the_largest_image_of_the_other_formats(pool, kind, mode):
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    few = 12_000_000
    options = {"compression": "tiff_lzw"} if kind == "TIFF" else {"quality": 20}
    data = saved_as(Image.new("RGB", (40, 30)).resize((4000, 3000)).convert(mode), kind, **options)
    here = pool(max_pixels=few)
    assert here.decode(data, at_least_px=224, max_pixels=few).shape[2] == 3


def saved_as(image, kind, **options):
    file = io.BytesIO()
    image.putpixel((0, 0), 255 if image.mode == "P" else (255,) * len(image.mode))
    image.save(file, kind, **options)
    return file.getvalue() + bytes(4096)  # as many bytes as pixels of one colour need


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_who_is_killed_or_stopped_at_work_costs_nobody_his_answer(pool, news, number):
    here = pool()
    job = under_way(here, COSTLY)
    os.kill(*pids(here), number)
    assert job.result().shape[2] == 3
    assert news == ["died" if number == signal.SIGKILL else "unresponsive"]


def test_an_image_under_which_a_decoder_crashes_is_undecodable_and_is_not_tried_again(pool, news):
    here = pool()
    job = under_way(here, COSTLY)
    os.kill(*pids(here), signal.SIGSEGV)
    with pytest.raises(UndecodableImage):
        job.result()
    assert news == ["died"]
    assert here.decode(SMALL, **LIMITS).shape == (40, 60, 3)


def test_an_image_under_which_two_processes_end_is_not_tried_a_third_time(pool, news):
    here = pool()
    job = under_way(here, COSTLY)
    for _ in range(2):
        until(lambda: here._busy)
        time.sleep(0.1)
        os.kill(*pids(here), signal.SIGKILL)
        until(lambda: not here._busy)
    with pytest.raises(NoDecoder):
        job.result()
    assert news == ["died", "died"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@wants_proc
def test_who_is_killed_or_stopped_at_rest_is_replaced(pool, news, number):
    here = pool(2)
    before = pids(here)
    for pid in before:
        os.kill(pid, number)
    until(lambda: len(here._idle) == 2 and not set(pids(here)) & set(before))
    assert news == ["died" if number == signal.SIGKILL else "unresponsive"] * 2
    assert not any(map(is_running, before))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_to_all_are_not_for_decoders(pool, news, number):
    here = pool()
    before = pids(here)
    os.kill(*before, number)
    assert here.decode(SMALL, **LIMITS).shape == (40, 60, 3)
    assert (pids(here), news) == (before, [])


def test_a_costly_job_whose_caller_leaves_is_ended_and_a_cheap_one_is_not(pool, news):
    here = pool()
    left = threading.Event()
    job = under_way(here, COSTLY, costly=True, wanted=lambda: not left.is_set())
    left.set()
    with pytest.raises(NoDecoder):
        job.result()
    assert news == ["abandoned"]
    left.clear()
    job = under_way(here, COSTLY, wanted=lambda: not left.is_set())
    left.set()
    assert job.result().shape[2] == 3


def test_costly_jobs_leave_the_first_process_to_the_others(pool):
    here = pool(2)
    jobs = [under_way(here, COSTLY, costly=True) for _ in range(2)]
    assert here.decode(SMALL, **LIMITS).shape == (40, 60, 3)
    assert [job.done() for job in jobs] == [False, False]
    assert os.getpriority(os.PRIO_PROCESS, next(iter(here._busy))._child.pid) > os.getpriority(
        os.PRIO_PROCESS, 0
    )
    for job in jobs:
        job.result()


def test_without_a_process_images_are_refused_until_there_is_one(pool, news):
    here = pool()
    begin = here._begin

    def fails(*_):
        raise OSError("no more descriptors")

    here._begin = fails
    os.kill(*pids(here), signal.SIGKILL)
    until(lambda: news.absences)
    with pytest.raises(NoDecoder):
        here.decode(SMALL, **LIMITS)
    until(lambda: here._attempts > 4)
    assert [str(each) for each in news.absences] == ["no more descriptors"]  # told once
    here._begin = begin
    until(lambda: here._idle)
    assert here.decode(SMALL, **LIMITS).shape == (40, 60, 3)
    assert news.absences[1:] == [None]


def test_where_the_system_gives_no_process_it_says_so(news, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    here = DecodeProcesses(2, budget_s=1, max_bytes=100, max_pixels=100, watcher=news)
    here.start()
    with pytest.raises(OSError, match="nowhere"):
        here.wait()
    here.close()


def test_a_program_that_does_not_begin_is_no_process(news, monkeypatch, tmp_path):
    (tmp_path / "app.py").write_text("raise ImportError")  # found before ours
    monkeypatch.setattr(decode_processes, "_ROOT", tmp_path)
    here = DecodeProcesses(1, budget_s=1, max_bytes=100, max_pixels=100, watcher=news)
    here.start()
    try:
        with pytest.raises(OSError, match="ended with 1"):
            here.wait()
    finally:
        here.close()


def test_descriptors_do_not_leak_with_processes_that_end(pool):
    here = pool()
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(3):
        (pid,) = pids(here)
        os.kill(pid, signal.SIGKILL)
        until(lambda pid=pid: here._idle and pids(here) != [pid])
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


@wants_proc
def test_a_process_knows_neither_torch_nor_keys_nor_other_files(pool, monkeypatch):
    monkeypatch.setenv("CAPTION_API_KEYS", "a-secret")
    here = pool()
    here.decode(SMALL, **LIMITS)
    (pid,) = pids(here)
    assert "torch" not in Path(f"/proc/{pid}/maps").read_text()
    assert b"a-secret" not in Path(f"/proc/{pid}/environ").read_bytes()
    files = {os.readlink(each) for each in Path(f"/proc/{pid}/fd").iterdir()}  # noqa: PTH115
    files = {each for each in files if not each.startswith("socket:")}
    assert files == {"/dev/null", "/memfd:decoder (deleted)"}  # that is what both sides see
    assert len(files) == 2


def resident_bytes(pid):
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


@wants_proc
def test_memory_goes_back_after_large_images(pool):
    here = pool()
    small = saved(300, 200)
    large, whole = slow_png(3000, 3000), {**LIMITS, "at_least_px": 3000}
    here.decode(small, **LIMITS)
    before = [resident_bytes(pid) for pid in (*pids(here), "self")]
    for _ in range(5):
        here.decode(large, **whole)
    for _ in range(5):
        here.decode(small, **LIMITS)
    after = [resident_bytes(pid) for pid in (*pids(here), "self")]
    kept = [now - then for now, then in zip(after, before, strict=True)]
    assert max(kept) < 16e6  # of 27 MB of pixels, each time


SERVICE = """
import sys
from app.captioner.image import decode, decode_processes
from app.captioner.image.decode_processes import DecodeProcesses

class News:
    def ended(self, reason): pass
    def absent(self, error): pass

pool = DecodeProcesses(2, budget_s=60, max_pixels=40_000_000, max_bytes=10**7, watcher=News())
pool.start()
pool.wait()
while len(pool._idle) < 2:
    pass
print(*(each._child.pid for each in pool._idle), flush=True)
sys.stdin.read()
"""


@wants_proc
@pytest.mark.parametrize("stopped", [True, False])
def test_decoders_end_with_a_service_that_was_killed_even_if_they_do_nothing(stopped):
    command = [sys.executable, "-c", SERVICE]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as service:
        mine = list(map(int, service.stdout.readline().split()))
        assert all(map(is_running, mine))
        if stopped:
            service.send_signal(signal.SIGSTOP)  # it would replace them
            for pid in mine:
                os.kill(pid, signal.SIGSTOP)
        service.kill()
    until(lambda: not any(map(is_running, mine)))


def test_closing_ends_processes_at_work_too(pool):
    here = pool(2)
    mine = pids(here)
    job = under_way(here, COSTLY)
    here.close()
    with pytest.raises(NoDecoder):
        job.result()
    until(lambda: not any(map(is_running, mine)))
    with pytest.raises(NoDecoder):
        here.decode(SMALL, **LIMITS)
