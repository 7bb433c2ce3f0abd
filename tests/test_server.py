"""The watch over the health of the service goes on, whatever goes wrong with a look."""

import asyncio
from types import SimpleNamespace

import pytest

from app import server as app_server
from app.serving.ending import HardLimit
from app.serving.health import Health


@pytest.fixture
def quick(monkeypatch):
    for name in ("_TICK_S", "_LAST_WORDS_S"):
        monkeypatch.setattr(app_server, name, 0.001)
    limits = []
    monkeypatch.setattr(HardLimit, "start", lambda _, limit_s: limits.append(limit_s))
    return limits


async def test_a_look_that_fails_is_not_the_last_one(quick, monkeypatch):
    health = Health(stuck_after_s=60)
    real, failed = health.livez, []

    def livez():
        if len(failed) < 3:
            failed.append(1)
            raise OSError("no file could be opened")
        health.fail("device_fault")
        return real()

    monkeypatch.setattr(health, "livez", livez)
    server = SimpleNamespace(config=SimpleNamespace(), should_exit=False)
    ending = app_server._Ending(server, SimpleNamespace(health=health), HardLimit())
    async with asyncio.timeout(60):
        await ending.when_dead()
    assert server.should_exit
    assert len(failed) == 3
    assert quick == [app_server._FAILED_END_S]
    assert server.config.timeout_graceful_shutdown < app_server._FAILED_END_S


async def test_a_drain_has_a_limit_beyond_all_that_it_waits_for(quick):
    settings = SimpleNamespace(drain_delay_s=0.01, drain_timeout_s=30)
    health = Health(stuck_after_s=60)
    health.ready()
    server = SimpleNamespace(config=SimpleNamespace(), should_exit=False)
    app_state = SimpleNamespace(health=health, settings=settings)
    await app_server._Ending(server, app_state, HardLimit())._drain(15)
    assert server.should_exit
    assert quick == [0.01 + 30 + app_server._DRAINED_END_S]
