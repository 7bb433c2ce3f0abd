"""Several checkpoints are served at once, and one may be tried on a share of the requests."""

import asyncio
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from app.captioner.errors import CheckpointError
from app.captioner.search import SearchOptions
from app.main import create_app
from app.serving.reloading import name_of
from app.settings import Settings
from support.api import RAW, as_files, as_json, captions, problem
from support.fake import FakeCaptioner, serving, until

ADMIN = {"authorization": "Bearer admin"}
TWO = {"checkpoints": "a,b", "admin_keys": ("admin",)}


def called(name, version):
    """Give a captioner of this name and version."""
    captioner = FakeCaptioner()
    captioner.manifest = captioner.manifest.model_copy(update={"name": name, "version": version})
    return captioner


class Stock:
    """A store with one captioner by version, of which the last put there is the newest."""

    def __init__(self, *captioners):
        self.captioners = {each.manifest.version: each for each in captioners}

    def find(self, version=None):
        version = version or list(self.captioners)[-1]
        if version not in self.captioners:
            raise CheckpointError(f"no version {version}")
        return Path(version)

    def fingerprint(self, directory):
        return directory

    def load(self, directory, *, beside):
        assert beside
        return self.captioners[str(directory)]


def checkpoints_of(client):
    return client.app.state.app_state.service.checkpoints


def stock(client, *stores):
    """Let the places of a service find their next checkpoints here."""
    for place, captioners in zip(checkpoints_of(client).places, stores, strict=True):
        place.store = Stock(*captioners)
        place._found = place._newest = place._look(place.served.version)


async def asked(client, model=None, data=b"a"):
    """Caption an image, and give the name and version of what did."""
    query = {} if model is None else {"model": model}
    answer = await client.post("/v1/captions", params=query, content=data, headers=RAW)
    assert answer.status_code == 200, answer.text
    assert captions(answer) == [data.decode()]
    return "{name}@{version}".format(**answer.json()["model"])


async def answered_by(client, requests):
    return Counter([await asked(client) for _ in range(requests)])


# Which one captions


@pytest.mark.parametrize(
    ("model", "by"),
    [
        (None, "tiny@9"),
        ("", "tiny@9"),
        ("tiny@9", "tiny@9"),
        ("tiny@10", "tiny@10"),
        ("tiny:10", "tiny@10"),
        ("tiny", "tiny@10"),  # 9 is before 10
        ("other", "other@1"),
        ("other@1", "other@1"),
    ],
)
async def test_a_request_chooses_its_checkpoint_in_whichever_form_it_comes(model, by):
    served = called("tiny", "9"), called("tiny", "10"), called("other", "1")
    async with serving(*served) as client:
        assert await asked(client, model) == by
        member = {} if model is None else {"model": model}
        as_form = await client.post("/v1/captions", files=as_files(b"b"), data=member)
        as_member = await client.post("/v1/captions", json={**as_json(b"c"), **member})
    for answer in (as_form, as_member):
        assert "{name}@{version}".format(**answer.json()["model"]) == by
    (captioner,) = (each for each in served if each.batches)
    assert captioner.batches == [[b"a"], [b"b"], [b"c"]]


@pytest.mark.parametrize("model", ["tiny@3", "tinY", "tiny@", "@1", "other", "a" * 900])
async def test_one_that_is_not_served_is_told_with_those_that_are(model):
    served = called("tiny", "1"), called("tiny", "2")
    async with serving(*served) as client:
        told = [
            await client.post("/v1/captions", params={"model": model}, content=b"a", headers=RAW),
            await client.post("/v1/captions", files=as_files(b"a"), data={"model": model}),
            await client.post("/v1/captions", json={**as_json(b"a"), "model": model}),
        ]
    for answer in told:
        detail = problem(answer, 404, "model_not_found")["detail"]
        assert detail.endswith("is served: choose one of tiny@1, tiny@2")
        assert len(detail) < 140
    assert [each.batches for each in served] == [[], []]


async def test_the_only_one_may_be_named_too():
    async with serving() as client:
        assert await asked(client, "tiny@1") == "tiny@1"
        answer = await client.post("/v1/captions?model=tiny@2", content=b"a", headers=RAW)
        assert problem(answer, 404, "model_not_found")["detail"].endswith("one of tiny@1")


async def test_the_beam_of_the_chosen_one_bounds_the_candidates():
    narrow, wide = called("narrow", "1"), called("wide", "1")
    search = SearchOptions(beam_width=1)
    narrow.manifest = narrow.manifest.model_copy(update={"search": search})
    async with serving(narrow, wide) as client:
        query = {"n_best": 2}
        refused = await client.post("/v1/captions", params=query, content=b"a", headers=RAW)
        query["model"] = "wide"
        answer = await client.post("/v1/captions", params=query, content=b"a", headers=RAW)
    problem(refused, 422, "invalid_request")
    assert len(answer.json()["results"][0]["candidates"]) == 2


async def test_a_result_of_one_is_not_told_for_another():
    first, second = called("tiny", "1"), called("tiny", "2")
    async with serving(first, second, result_cache_entries=9) as client:
        by = [await asked(client, model) for model in ("tiny@1", "tiny@2") * 2]
    assert by == ["tiny@1", "tiny@2"] * 2
    assert (first.batches, second.batches) == ([[b"a"]], [[b"a"]])


async def test_each_has_batches_of_its_own_and_none_waits_for_the_other():
    first, second = called("tiny", "1"), called("tiny", "2")
    first.engine.max_concurrent_batches = 2
    async with serving(first, second, max_batch=4) as client:
        for each in (first, second):
            each.gate.clear()

        def ask(number):
            model = f"tiny@{1 + number % 2}"
            return asyncio.create_task(asked(client, model, str(number).encode()))

        busy = [ask(0), ask(1)]
        await asyncio.to_thread(first.entered.wait, 10)
        await asyncio.to_thread(second.entered.wait, 10)
        waiting = [ask(number) for number in range(2, 10)]
        await until(lambda: client.app.state.app_state.service.depth == 8)
        second.gate.set()  # the first goes on with its own
        assert await asyncio.gather(*waiting[1::2]) == ["tiny@2"] * 4
        first.gate.set()
        assert await asyncio.gather(*busy, *waiting[::2]) == ["tiny@1", "tiny@2", *["tiny@1"] * 4]
    for captioner, parity in ((first, 0), (second, 1)):
        images = [int(image) for batch in captioner.batches for image in batch]
        assert sorted(images) == list(range(parity, 10, 2))


# The canary


@pytest.mark.parametrize("share", [0.05, 0.3, 0.0, 1.0])
async def test_the_last_one_gets_its_share_of_who_asks_for_none(share):
    served = called("tiny", "1"), called("tiny", "2")
    async with serving(*served, **TWO, canary=share) as client:
        for requests in (20, 300):
            by = await answered_by(client, requests)
            assert abs(by["tiny@2"] - share * requests) <= 2
            assert await asked(client, "tiny@1") == "tiny@1"
            assert await asked(client, "tiny@2") == "tiny@2"


@pytest.mark.parametrize("beats", [2, 3, 5, 10, 20])
async def test_no_rhythm_of_callers_decides_who_meets_the_canary(beats):
    served = called("tiny", "1"), called("tiny", "2")
    async with serving(*served, **TWO, canary=0.1) as client:
        by = [await asked(client) for _ in range(400)]
    each_beat = [by[beat::beats].count("tiny@2") for beat in range(beats)]
    assert max(each_beat) - min(each_beat) <= 4
    assert 0 not in each_beat


async def test_a_name_alone_gets_no_more_of_the_canary_than_no_name_does():
    served = called("tiny", "1"), called("tiny", "2")
    async with serving(*served, **TWO, canary=0.1) as client:
        by = Counter([await asked(client, "tiny") for _ in range(100)])
        assert abs(by["tiny@2"] - 10) <= 2
        await client.post("/v1/admin/canary?share=0", headers=ADMIN)
        assert {await asked(client, "tiny") for _ in range(20)} == {"tiny@1"}
        await client.post("/v1/admin/canary?share=1", headers=ADMIN)
        assert {await asked(client, "tiny") for _ in range(20)} == {"tiny@2"}


async def test_a_canary_of_another_name_is_met_by_its_name_alone():
    served = called("tiny", "1"), called("large", "1")
    async with serving(*served, **TWO, canary=0.1) as client:
        assert {await asked(client, "tiny") for _ in range(20)} == {"tiny@1"}
        assert {await asked(client, "large") for _ in range(20)} == {"large@1"}


async def test_one_call_ends_a_canary_begins_one_and_promotes_it():
    served = called("tiny", "1"), called("tiny", "2")
    async with serving(*served, **TWO) as client:

        async def give(share):
            answer = await client.post(f"/v1/admin/canary?share={share}", headers=ADMIN)
            assert answer.status_code == 200
            model = {"name": "tiny", "version": "2"}
            assert answer.json() == {"share": share, "model": model}
            models = (await client.get("/v1/models")).json()
            assert [each["share"] for each in models["served"]] == [1 - share, share]
            assert f"caption_canary_share {share}" in (await client.get("/metrics")).text
            return await answered_by(client, 20)

        assert await answered_by(client, 20) == {"tiny@1": 20}
        with capture_logs() as logs:
            assert (await give(0.5)).keys() == {"tiny@1", "tiny@2"}
        (event,) = (line for line in logs if line["event"] == "canary")
        assert (event["share"], event["checkpoint"]) == (0.5, "tiny:2")
        assert await give(1.0) == {"tiny@2": 20}
        assert await give(0.0) == {"tiny@1": 20}


@pytest.mark.parametrize("query", ["", "?share=", "?share=5%25", "?share=1.1", "?share=nan"])
async def test_a_share_that_is_none_changes_nothing(query):
    served = called("tiny", "1"), called("tiny", "2")
    async with serving(*served, **TWO, canary=0.0) as client:
        answer = await client.post(f"/v1/admin/canary{query}", headers=ADMIN)
        told = problem(answer, 422, "invalid_request")
        assert told["errors"] == [
            {"field": "share", "message": "Input should be a number from 0 to 1"}
        ]
        assert await answered_by(client, 20) == {"tiny@1": 20}


@pytest.mark.parametrize("count", [1, 3])
async def test_a_canary_needs_exactly_two(count):
    served = [called("tiny", str(number)) for number in range(count)]
    async with serving(*served, admin_keys=("admin",)) as client:
        answer = await client.post("/v1/admin/canary?share=0.5", headers=ADMIN)
        detail = problem(answer, 422, "invalid_request")["detail"]
        assert "CAPTION_CHECKPOINTS" in detail
        assert await answered_by(client, 20) == {"tiny@0": 20}


async def test_only_an_admin_key_changes_the_share():
    served = called("tiny", "1"), called("tiny", "2")
    async with serving(*served, api_keys=("api",), **TWO) as client:
        for headers in ({}, {"x-api-key": "api"}):
            answer = await client.post("/v1/admin/canary?share=1", headers=headers)
            problem(answer, 401, "unauthorized")
        assert checkpoints_of(client).share_of(checkpoints_of(client).first) == 1
    async with serving(*served) as client:
        problem(await client.post("/v1/admin/canary?share=1"), 404, "not_found")


# What operators see


async def test_every_place_tells_of_all_that_are_served():
    served = called("tiny", "1"), called("tiny", "2")
    async with serving(*served, **TWO, canary=0.25) as client:
        models = (await client.get("/v1/models")).json()
        metrics = (await client.get("/metrics")).text
        log_line = checkpoints_of(client).served
    assert [each["version"] for each in models["models"]] == ["1", "2"]
    assert [each["id"] for each in models["data"]] == ["tiny:1", "tiny:2"]
    assert models["served"] == [
        {"name": "tiny", "version": "1", "share": 0.75, "refused": None},
        {"name": "tiny", "version": "2", "share": 0.25, "refused": None},
    ]
    assert metrics.count("\ncaption_checkpoint_info{") == 2
    assert [name_of(each.captioner) for each in log_line] == ["tiny:1", "tiny:2"]


async def test_outcomes_times_and_confidence_are_told_by_checkpoint():
    served = called("tiny", "1"), called("tiny", "2")
    async with serving(*served, min_confidence=0.75) as client:
        await asked(client, "tiny@1")
        for _ in range(2):
            await asked(client, "tiny@2")
        query = {"model": "tiny@2", "min_confidence": 0.9}
        await client.post("/v1/captions", params=query, content=b"a", headers=RAW)
        query = {"model": "tiny@2"}
        await client.post("/v1/captions", params=query, content=b"broken", headers=RAW)
        metrics = (await client.get("/metrics")).text
    for sample in (
        'caption_images_total{{checkpoint="tiny:{0}",outcome="ok"}} {1}',
        'caption_requests_total{{checkpoint="tiny:{0}",outcome="ok",route="/v1/captions"}} {1}',
        'caption_confidence_count{{checkpoint="tiny:{0}"}} {1}',
        'caption_inference_duration_seconds_count{{checkpoint="tiny:{0}",stage="encode"}} {1}',
        'caption_inference_duration_seconds_count{{checkpoint="tiny:{0}",stage="search"}} {1}',
    ):
        assert sample.format(1, 1.0) in metrics
        assert sample.format(2, 3.0) in metrics
    for sample in (
        'caption_withheld_total{checkpoint="tiny:1",reason="low_confidence"} 0.0',
        'caption_withheld_total{checkpoint="tiny:2",reason="low_confidence"} 1.0',
        'caption_images_total{checkpoint="tiny:2",outcome="undecodable_image"} 1.0',
        'caption_confidence_sum{checkpoint="tiny:1"} 0.8',
        'caption_request_duration_seconds_count{checkpoint="tiny:1",route="/v1/captions"} 1.0',
        'caption_request_duration_seconds_count{checkpoint="tiny:2",route="/v1/captions"} 4.0',
    ):
        assert sample in metrics


# Another one takes the place of one of them


async def test_one_of_several_is_replaced_by_the_same_call():
    a1, b1, b2 = called("a", "1"), called("b", "1"), called("b", "2")
    async with serving(a1, b1, **TWO) as client:
        stock(client, [a1], [b1, b2])
        call = "/v1/admin/reload?model=b&version=2"
        answer = await client.post(call, headers=ADMIN)
        assert answer.json()["model"] == {"name": "b", "version": "2"}
        assert await asked(client) == "a@1"
        assert await asked(client, "b") == "b@2"
        answer = await client.post("/v1/captions?model=b@1", content=b"a", headers=RAW)
        problem(answer, 404, "model_not_found")
        answer = await client.post("/v1/admin/reload?model=b@2&version=1", headers=ADMIN)
        assert answer.json()["outcome"] == "served"
        assert await asked(client, "b") == "b@1"
        answer = await client.post("/v1/admin/reload", headers=ADMIN)  # of the first
        assert answer.json()["outcome"] == "unchanged"
        assert answer.json()["model"] == {"name": "a", "version": "1"}
        metrics = (await client.get("/metrics")).text
    assert metrics.count("\ncaption_checkpoint_info{") == 2
    assert 'caption_checkpoint_info{name="b",sha256' in metrics


async def test_a_reload_says_which_it_could_mean():
    served = called("tiny", "6"), called("tiny", "7"), called("other", "1")
    async with serving(*served, admin_keys=("admin",)) as client:
        unclear = await client.post("/v1/admin/reload?model=tiny&version=5", headers=ADMIN)
        unknown = await client.post("/v1/admin/reload?model=tiny@5", headers=ADMIN)
    told = problem(unclear, 422, "invalid_request")["detail"]
    assert told == "model: Input should be one of tiny@6, tiny@7"
    told = problem(unknown, 404, "model_not_found")["detail"]
    assert told == "no checkpoint tiny@5 is served: choose one of tiny@6, tiny@7, other@1"


async def test_what_another_place_serves_is_refused():
    first, second = called("tiny", "1"), called("tiny", "2")
    async with serving(first, second, **TWO) as client:
        stock(client, [first, second], [second])
        answer = await client.post("/v1/admin/reload?version=2", headers=ADMIN)
        reason = problem(answer, 409, "checkpoint_refused")["detail"]
        assert reason.startswith("tiny:2 is served already, as another of CAPTION_CHECKPOINTS")
        models = (await client.get("/v1/models")).json()
        assert models["served"][0]["refused"]["reason"] == reason
        assert models["served"][1]["refused"] is None
        assert models["refused"] == models["served"][0]["refused"]
        assert await asked(client) == "tiny@1"


async def test_a_signal_looks_at_all_of_them():
    a1, a2, b1, b2 = called("a", "1"), called("a", "2"), called("b", "1"), called("b", "2")
    async with serving(a1, b1) as client:
        stock(client, [a1, a2], [b1, b2])
        checkpoints_of(client).on_signal()
        await until(lambda: [each.version for each in checkpoints_of(client).served] == ["2", "2"])


async def test_all_of_them_are_watched():
    a1, b1, b2 = called("a", "1"), called("b", "1"), called("b", "2")
    async with serving(a1, b1, watch=0.02) as client:
        stock(client, [a1], [b1])
        checkpoints_of(client).places[1].store.captioners["2"] = b2
        await until(lambda: [each.version for each in checkpoints_of(client).served] == ["1", "2"])


# The start


async def failed(*captioners):
    """Give the reason why these are not served."""
    with capture_logs() as logs:
        async with serving(*captioners) as client:
            answer = await client.get("/readyz")
            assert answer.json() == {"status": "failed", "reason": "checkpoint_refused"}
            assert (await client.get("/livez")).status_code == 503
    (reason,) = (line["reason"] for line in logs if line["event"] == "checkpoint_refused")
    return reason


async def test_a_bad_second_one_is_never_ready_and_told_which_it_is():
    first, second = called("tiny", "1"), called("tiny", "2")
    second.golden_error = CheckpointError("the golden caption is another")
    reason = await failed(first, second)
    assert reason == "number 2 of CAPTION_CHECKPOINTS: the golden caption is another"


async def test_two_of_the_same_name_and_version_are_refused():
    reason = await failed(called("tiny", "1"), called("tiny", "1"))
    assert reason.startswith("number 2 of CAPTION_CHECKPOINTS: tiny:1 is served already")


async def test_real_ones_are_loaded_and_each_says_its_own(checkpoint, tmp_path):
    copy = shutil.copytree(checkpoint, tmp_path / "tiny" / "2")
    about = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**about, "version": "2"}))
    named = f"{checkpoint},{tmp_path / 'tiny'}@2"
    app = create_app(Settings(checkpoints=named, device="cpu", inference_threads=1))
    service = app.state.app_state.service
    async with app.router.lifespan_context(app):
        await asyncio.wait({service._starting})
        names = [name_of(each.captioner) for each in service.checkpoints.served]
    assert names == ["tiny:1", "tiny:2"]
