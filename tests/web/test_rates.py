"""Requests a second of each key: refused above the rate, told by the fields, never without keys."""

import pytest

from app.web.problems import RateExceeded
from app.web.rates import Rates
from support.api import RAW, captions, problem
from support.fake import pass_time, serving

KEYS = "one two"


def key(name):
    return {**RAW, "x-api-key": name}


async def post(client, name):
    return await client.post("/v1/captions", content=b"a dog", headers=key(name))


async def test_a_key_above_its_rate_is_refused_and_the_others_go_on():
    async with serving(api_keys=KEYS, key_requests_per_s=2) as client:
        first, second, third = [await post(client, "one") for _ in range(3)]
        assert captions(first) == captions(second) == ["a dog"]
        told = problem(third, 429, "rate_exceeded")
        assert told["limit"] == 2
        assert int(third.headers["retry-after"]) == told["retry_after"] == 1
        assert captions(await post(client, "two")) == ["a dog"]
        pass_time(1)
        assert captions(await post(client, "one")) == ["a dog"]
        metrics = (await client.get("/metrics")).text
    assert 'caption_rejected_total{reason="rate_exceeded"} 1.0' in metrics


async def test_the_fields_say_what_is_left():
    async with serving(api_keys=KEYS, key_requests_per_s=2) as client:
        answers = [await post(client, "one") for _ in range(3)]
        other = await client.get("/v1/models", headers=key("two"))
        probe = await client.get("/readyz")
    assert [answer.headers["ratelimit"] for answer in answers] == [
        '"key";r=1;t=1', '"key";r=0;t=1', '"key";r=0;t=1'
    ]  # fmt: skip
    assert {answer.headers["ratelimit-policy"] for answer in answers} == {'"key";q=2;w=1'}
    assert other.headers["ratelimit"] == '"key";r=1;t=1'
    assert "ratelimit" not in probe.headers


@pytest.mark.parametrize("settings", [{"key_requests_per_s": 1}, {"api_keys": KEYS}])
async def test_without_keys_or_without_a_rate_there_is_none(settings):
    async with serving(**settings) as client:
        answers = [await post(client, "one") for _ in range(5)]
    assert {answer.status_code for answer in answers} == {200}
    assert not any("ratelimit" in answer.headers for answer in answers)


async def test_who_has_no_key_spends_nothing_of_anybodys():
    async with serving(api_keys=KEYS, key_requests_per_s=1) as client:
        for _ in range(5):
            problem(await post(client, "three"), 401, "unauthorized")
        assert captions(await post(client, "one")) == ["a dog"]


@pytest.mark.parametrize(("per_s", "seconds", "let_in"), [(10, 5, 60), (0.5, 20, 11), (2.5, 4, 13)])
def test_over_time_a_key_makes_as_many_as_its_rate_and_a_bucket_more(per_s, seconds, let_in):
    rates, taken = Rates(per_s), 0
    for tick in range(seconds * 64 + 1):
        try:
            rates.take(0, tick / 64)
            taken += 1
        except RateExceeded:
            pass
    assert taken == let_in


def test_the_wait_that_is_told_is_long_enough_and_no_longer_than_a_second_more():
    rates = Rates(0.1)
    rates.take(0, 0.0)
    with pytest.raises(RateExceeded) as refused:
        rates.take(0, 2.5)
    assert refused.value.retry_after_s == 8  # 7.5, in whole seconds
    rates.take(0, 2.5 + 8)


def test_who_has_waited_long_may_make_a_bucket_and_no_more():
    rates = Rates(3)
    rates.take(0, 0.0)
    for _ in range(3):
        rates.take(0, 1000.0)
    with pytest.raises(RateExceeded):
        rates.take(0, 1000.0)
