"""The states and what the probes say about them."""

import contextlib
import threading

import pytest

from app.serving.health import Health, Heartbeat, NotReady


class Clock:
    now_s = 100.0

    def __call__(self):
        return self.now_s


def answers(health):
    """Give what /startupz, /livez and /readyz say."""
    return health.startupz().ok, health.livez().ok, health.readyz().ok


def ready_health(clock=None):
    health = Health(stuck_after_s=60, heartbeat=Heartbeat(clock or Clock()))
    health.warming()
    health.ready()
    return health


def test_each_state_has_its_answers_and_reason():
    health = Health(stuck_after_s=60)
    assert answers(health) == (False, True, False)
    assert health.readyz().reason == "loading_checkpoint"
    health.warming()
    assert answers(health) == (False, True, False)
    assert health.readyz().reason == "warming_up"
    health.ready()
    assert answers(health) == (True, True, True)
    assert (health.readyz().status, health.readyz().reason) == ("ready", "ok")
    health.drain()
    assert answers(health) == (True, True, False)
    assert health.readyz().reason == "shutting_down"


def test_a_failure_is_neither_alive_nor_ready_and_keeps_its_reason():
    health = Health(stuck_after_s=60)
    health.fail("checkpoint_refused")
    health.drain()
    health.fail("something_later")
    assert answers(health) == (False, False, False)
    assert health.livez().status == "failed"
    assert health.livez().reason == "checkpoint_refused"


def test_a_load_that_ends_while_draining_does_not_make_it_ready():
    health = Health(stuck_after_s=60)
    health.drain()
    health.warming()
    health.ready()
    assert not health.readyz().ok
    with pytest.raises(NotReady):
        health.check_accepting()


def test_work_is_let_in_from_ready_until_the_end_of_the_drain_delay():
    health = Health(stuck_after_s=60)
    with pytest.raises(NotReady, match="loading_checkpoint"):
        health.check_accepting()
    health.ready()
    health.check_accepting()
    health.drain()
    health.check_accepting()
    health.refuse()
    with pytest.raises(NotReady, match="shutting_down"):
        health.check_accepting()


def test_a_long_job_is_busy_until_it_is_stuck():
    clock = Clock()
    health = ready_health(clock)
    with health.heartbeat:
        clock.now_s += 59
        assert answers(health) == (True, True, True)
        clock.now_s += 2
        assert answers(health) == (False, False, False)
        assert health.livez().reason == "inference_thread_stuck"
        with pytest.raises(NotReady, match="inference_thread_stuck"):
            health.check_accepting()


@pytest.mark.parametrize("seen_by", ["livez", "readyz", "startupz", "check_accepting"])
def test_what_was_stuck_once_stays_failed_though_it_goes_on(seen_by):
    clock = Clock()
    health = ready_health(clock)
    with health.heartbeat:
        clock.now_s += 61
        with contextlib.suppress(NotReady):
            getattr(health, seen_by)()
    assert answers(health) == (False, False, False)
    assert health.readyz().reason == "inference_thread_stuck"


def test_a_job_that_is_stuck_while_draining_is_a_failure_too():
    clock = Clock()
    health = ready_health(clock)
    with health.heartbeat:
        health.refuse()
        clock.now_s += 61
        assert not health.livez().ok
    assert health.livez().reason == "inference_thread_stuck"


def test_the_time_of_a_suspended_process_is_not_that_of_its_jobs():
    clock = Clock()
    health = ready_health(clock)
    with health.heartbeat:
        for _ in range(100):  # 50 s of work, looked at twice a second
            health.heartbeat.look()
            clock.now_s += 0.5
        clock.now_s += 90  # SIGSTOP, SIGCONT
        assert health.livez().ok
        for _ in range(30):
            health.heartbeat.look()
            clock.now_s += 0.5
        assert health.livez().reason == "inference_thread_stuck"


def test_a_long_load_is_not_stuck():
    clock = Clock()
    health = Health(stuck_after_s=60, heartbeat=Heartbeat(clock))
    with health.heartbeat:
        clock.now_s += 600
        assert health.livez().ok


def test_a_dead_inference_thread_is_found_though_nobody_asks_it():
    health = ready_health()

    def one_job():
        with health.heartbeat:
            pass

    thread = threading.Thread(target=one_job)
    thread.start()
    thread.join()
    assert not health.livez().ok
    assert health.livez().reason == "inference_thread_dead"


def test_a_thread_that_ended_with_the_service_is_no_fault():
    health = ready_health()

    def one_job():
        with health.heartbeat:
            pass

    thread = threading.Thread(target=one_job)
    thread.start()
    thread.join()
    health.refuse()
    assert health.livez().ok


def test_the_oldest_job_of_several_threads_decides():
    clock = Clock()
    health = ready_health(clock)
    ends, begun = threading.Event(), threading.Event()

    def stuck():
        with health.heartbeat:
            begun.set()
            ends.wait(10)

    thread = threading.Thread(target=stuck)
    thread.start()
    begun.wait(10)
    clock.now_s += 61
    with health.heartbeat:  # another thread works on
        assert health.livez().reason == "inference_thread_stuck"
    ends.set()
    thread.join()
    assert not health.heartbeat.busy
