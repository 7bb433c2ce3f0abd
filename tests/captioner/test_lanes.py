"""Lanes in processes of their own, with a tiny real checkpoint."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import torch

from app.captioner.captions import Findings
from app.captioner.device import Share
from app.captioner.errors import CheckpointError, DeviceFault, LaneDied
from app.captioner.lanes import Lanes, _Lane
from app.captioner.pipeline import Captioner
from support.processes import is_running, wants_proc
from support.tiny import SIZE_PX, photo

CORES, MOST = 2, 4  # as `apart` has


@pytest.fixture(scope="module")
def here(directory):
    return Captioner.load(directory)


@pytest.fixture
def images(here):
    return [here.read(photo(seed), max_pixels=10_000) for seed in range(MOST)]


def told(candidates):
    return [
        (
            caption.text,
            caption.log_prob,
            caption.score,
            [word.attention.tolist() for word in caption.words],
        )
        for caption in candidates
    ]


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("size", [1, 3, MOST])
def test_a_lane_says_what_the_network_says_in_this_process(here, apart, images, size, alone):
    batch = images[:size]
    assert list(map(told, apart.caption(batch, alone=alone))) == list(
        map(told, here.caption(batch))
    )


def test_it_is_ready_as_any_other_is(apart):
    assert apart.lanes == CORES
    apart.warm_up([1, MOST])
    apart.check_golden()


def test_stages_are_told_on_the_clock_of_this_process(apart, images):
    stages, began_s = [], time.monotonic()
    apart.caption(images, on_stage=lambda *stage: stages.append(stage), alone=False)
    (encode, *encoded), (search, *searched) = stages
    assert (encode, search) == ("encode", "search")
    assert began_s <= encoded[0] <= encoded[1] == searched[0] <= searched[1] <= time.monotonic()


def test_whom_nobody_waits_for_gets_nothing(here, apart, images):
    first, second, *_ = apart.caption(images, wanted=lambda n: n > 0, alone=False)
    assert first == ()
    assert told(second) == told(here.caption(images)[1])


def test_a_batch_that_is_too_large_is_refused_and_the_next_is_not(apart, images):
    with pytest.raises(ValueError, match="at most 4 images, got 5"):
        apart.caption([*images, images[0]], alone=False)
    assert len(apart.caption(images, alone=False)) == MOST


def lanes(load):
    return Lanes(load, count=CORES, most_images=MOST, size_px=SIZE_PX)


@pytest.fixture
def odd():
    made = lanes(Odd)
    yield made
    made.close()


class Odd:
    """Does what the first pixel of the first image says; runs in the process of a lane."""

    def find(self, images, *, on_stage, wanted, alone):  # noqa: ARG002
        what = int(images[0][0, 0, 0])
        if what == Odd.RAISES:
            raise RuntimeError("broken")
        if what == Odd.DIES:
            os._exit(9)
        if what == Odd.WAITS:
            ends_s = time.monotonic() + 20
            while wanted(0) and time.monotonic() < ends_s:
                time.sleep(0.001)
            on_stage("gave up", 0.0, ends_s - time.monotonic())
        time.sleep(0.1)
        on_stage(str(os.getpid()), float(torch.get_num_threads()), 0.0)
        return Findings([], None, {})

    RAISES, DIES, WAITS = 1, 2, 3


def ask(lanes, what=0, *, cores=1, wanted=lambda _: True):
    stages = []
    image = torch.full((3, SIZE_PX, SIZE_PX), what, dtype=torch.uint8)
    share = Share(cores, None, ())
    lanes.find([image], share, on_stage=lambda *stage: stages.append(stage), wanted=wanted)
    return stages


def test_batches_side_by_side_run_in_processes_of_their_own_with_a_core_each(odd):
    with ThreadPoolExecutor(CORES) as threads:
        asked = [threads.submit(ask, odd) for _ in range(CORES)]
    ((one, *cores), *_), ((other, *others), *_) = (each.result() for each in asked)
    assert len({one, other, str(os.getpid())}) == 3
    assert cores == others == [1.0, 0.0]
    ((_, cores, _),) = ask(odd, cores=CORES)
    assert cores == CORES


def test_a_lane_hears_while_it_works_that_nobody_waits_any_more(odd):
    began_s = time.monotonic()
    stages = ask(odd, Odd.WAITS, wanted=lambda _: time.monotonic() < began_s + 0.05)
    assert stages[0][0] == "gave up"
    assert stages[0][2] > 0


def test_what_a_lane_raises_is_raised_here_and_tells_from_where(odd):
    with pytest.raises(RuntimeError, match="broken") as raised:
        ask(odd, Odd.RAISES)
    assert "in find" in raised.value.__notes__[0]
    ask(odd)


def test_a_lane_that_dies_is_a_device_that_failed(odd):
    assert odd.whole
    with pytest.raises(DeviceFault, match="has ended"):
        ask(odd, Odd.DIES)
    ends_s = time.monotonic() + 10
    while odd.whole and time.monotonic() < ends_s:
        time.sleep(0.01)
    assert not odd.whole


def test_signals_to_the_group_do_not_end_a_lane(odd):
    ((before, *_),) = ask(odd)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(int(before), number)
    ((after, *_),) = ask(odd)
    assert after == before


def test_what_cannot_be_loaded_is_raised_here():
    with pytest.raises(CheckpointError, match="nowhere"):
        lanes(partial(Captioner.load, Path("nowhere")))


def test_a_process_that_the_system_refuses_ends_those_that_had_begun(monkeypatch):
    made = []

    def one(*about):
        if made:
            raise OSError("no more processes")
        made.append(_Lane(*about))
        return made[0]

    monkeypatch.setattr("app.captioner.lanes._Lane", one)
    with pytest.raises(OSError, match="no more"):
        lanes(Odd)
    assert made[0]._process.exitcode is not None


@wants_proc
def test_closing_ends_even_a_lane_that_does_not(odd):
    ((pid, *_),) = ask(odd)
    with ThreadPoolExecutor(1) as threads:
        stuck = threads.submit(ask, odd, Odd.WAITS)
        time.sleep(0.1)
        odd.close()
        with pytest.raises(DeviceFault):
            stuck.result(10)
    assert not is_running(int(pid))


@wants_proc
def test_closing_ends_lanes_that_are_stopped_and_waits_for_them_together(odd):
    pids = [lane._process.pid for lane in odd._lanes]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    odd.close()
    assert not any(map(is_running, pids))


@wants_proc
def test_a_lane_that_is_at_work_is_killed_without_a_word(odd, monkeypatch):
    ((pid, *_),) = ask(odd)
    monkeypatch.setattr("app.captioner.lanes._PATIENCE_S", 3600)  # nobody waits for its end
    with ThreadPoolExecutor(1) as threads:
        stuck = threads.submit(ask, odd, Odd.WAITS)
        time.sleep(0.1)
        os.kill(int(pid), signal.SIGSTOP)
        odd.close()
        with pytest.raises(LaneDied):
            stuck.result(10)


def test_dismissing_waits_for_no_room_in_the_pipe(odd):
    lane = odd._lanes[0]
    os.kill(lane._process.pid, signal.SIGSTOP)
    os.set_blocking(lane._connection.fileno(), False)
    with suppress(BlockingIOError):
        while True:
            lane._connection.send(bytes(4096))
    os.set_blocking(lane._connection.fileno(), True)
    lane.dismiss()
    assert lane._hangs_up_within(60)


FORKSERVER = """
import os, signal, sys, time
sys.path[:0] = sys.argv[2:]
from multiprocessing import forkserver
from test_lanes import Odd, ask, lanes

if __name__ == "__main__":
    made = lanes(Odd)
    os.kill(forkserver._forkserver._forkserver_pid, int(sys.argv[1]))
    time.sleep(0.5)
    ask(made)
    for lane in made._lanes:
        os.kill(lane._process.pid, signal.SIGSTOP)
    assert made.whole
    made.close()
    assert not made.whole
    print(*[lane._process.pid for lane in made._lanes], flush=True)
    os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)  # or it stays, stopped
    os._exit(0)
"""


@wants_proc
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_lanes_need_the_process_that_they_come_from_no_more(tmp_path, number):
    program = tmp_path / "program.py"
    program.write_text(FORKSERVER)
    folders = [Path.cwd(), Path(__file__).parent, Path(__file__).parents[1]]
    with subprocess.Popen(
        [sys.executable, program, str(int(number)), *folders], stdout=subprocess.PIPE, text=True
    ) as process:
        pids = [int(pid) for pid in process.stdout.read().split()]
    assert len(pids) == CORES
    assert process.returncode == 0
    assert not any(map(is_running, pids))


PROGRAM = """
import sys, threading
sys.path[:0] = sys.argv[1:]
from functools import partial
from test_lanes import Odd, ask, lanes

if __name__ == "__main__":
    made = lanes(Odd)
    threading.Thread(target=partial(ask, made, Odd.WAITS), daemon=True).start()
    print(*[lane._process.pid for lane in made._lanes], flush=True)
    sys.stdin.read()
"""


@wants_proc
@pytest.mark.parametrize("number", [None, signal.SIGKILL])
def test_lanes_end_with_the_process_that_wanted_them_whatever_they_do(tmp_path, number):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    folders = [Path.cwd(), Path(__file__).parent, Path(__file__).parents[1]]
    with subprocess.Popen(
        [sys.executable, program, *folders],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == CORES
        assert all(map(is_running, pids))
        time.sleep(0.2)  # by now one of them has its order, which takes 20 s
        if number is not None:
            process.send_signal(number)
    ends_s = time.monotonic() + 10
    while any(map(is_running, pids)) and time.monotonic() < ends_s:
        time.sleep(0.05)
    assert not any(map(is_running, pids))
    assert process.returncode == (0 if number is None else -number)
