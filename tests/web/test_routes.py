"""The routes: three forms in, captions or problems out."""

import asyncio
import json

import anyio.to_thread
import httpx
import pytest

from app.web.problems import ALL_PROBLEM_TYPES
from app.web.schemas import CaptionResponse, Problem
from support.api import RAW, as_files, as_json, captions, problem
from support.fake import SHA256, FakeCaptioner, serving


async def test_the_three_forms_give_the_same_answer():
    async with serving() as client:
        raw = await client.post("/v1/captions", content=b"a dog", headers=RAW)
        form = await client.post("/v1/captions", files=as_files(b"a dog"))
        body = await client.post("/v1/captions", json=as_json(b"a dog"))
    for answer in (raw, form, body):
        assert captions(answer) == ["a dog"]
        CaptionResponse.model_validate_json(answer.content)


async def test_no_request_takes_a_thread_of_the_framework(monkeypatch):
    """A plain function among the dependencies would cost every request two hand-overs."""

    def refused(*_args, **_kwargs):
        raise AssertionError("a function was given to a thread")

    monkeypatch.setattr(anyio.to_thread, "run_sync", refused)
    async with serving() as client:
        assert captions(await client.post("/v1/captions", files=as_files(b"a dog"))) == ["a dog"]
        for path in ("/livez", "/startupz", "/readyz", "/healthz", "/v1/models", "/metrics"):
            assert (await client.get(path)).status_code == 200


async def test_the_answer_is_exactly_what_was_asked_for():
    async with serving() as client:
        answer = await client.post("/v1/captions", files=as_files(b"a dog"))
    assert answer.json() == {
        "request_id": answer.headers["x-request-id"],
        "model": {"name": "tiny", "version": "1"},
        "results": [
            {
                "filename": "0.jpg",
                "caption": "a dog",
                "log_prob": -1.0,
                "confidence": 0.8,
                "candidates": [
                    {"caption": "a dog", "log_prob": -1.0, "score": -0.5, "confidence": 0.8}
                ],
            }
        ],
    }


@pytest.mark.parametrize("asked", ["0.8", "0.81"])
@pytest.mark.parametrize("own", [None, 0.0, 1.0])
async def test_a_caption_of_low_confidence_is_withheld_with_tags_and_candidates(asked, own):
    async with serving(min_confidence=own) as client:
        query = {"min_confidence": asked}
        answer = await client.post("/v1/captions", params=query, files=as_files(b"a dog"))
        metrics = (await client.get("/metrics")).text
    (result,) = answer.json()["results"]
    withheld = asked == "0.81"
    assert (result["caption"] is None) == withheld
    assert result.get("withheld") == ("low_confidence" if withheld else None)
    assert ("tags" in result) == withheld
    assert result["candidates"][0]["caption"] == "a dog"
    labels = 'checkpoint="tiny:1",reason="low_confidence"'
    assert f"caption_withheld_total{{{labels}}} {float(withheld)}" in metrics
    CaptionResponse.model_validate_json(answer.content)


async def test_the_service_withholds_by_itself_where_it_is_told_to():
    async with serving(min_confidence=0.9) as client:
        answer = await client.post("/v1/captions", files=as_files(b"a dog"))
    assert answer.json()["results"][0]["withheld"] == "low_confidence"


async def test_neutral_alt_texts_with_tags():
    async with serving() as client:
        query = {"neutral": "true", "style": "alt", "tags": "true"}
        answer = await client.post("/v1/captions", params=query, files=as_files(b"a man runs"))
    (result,) = answer.json()["results"]
    assert result["caption"] == "A person runs"
    assert result["tags"] == [{"label": "dog", "probability": 0.75}]


@pytest.mark.parametrize("query", ["min_confidence=1.5", "style=poem", "neutral=perhaps"])
async def test_options_that_mean_nothing_are_refused(query):
    async with serving() as client:
        answer = await client.post(f"/v1/captions?{query}", files=as_files(b"a dog"))
    problem(answer, 422, "invalid_request")


async def test_a_raw_image_has_no_filename():
    async with serving() as client:
        answer = await client.post("/v1/captions", content=b"a dog", headers=RAW)
    assert answer.json()["results"][0]["filename"] is None


async def test_options_mean_the_same_in_the_query_in_a_form_and_in_json():
    options = {"n_best": 2, "words": True}
    async with serving() as client:
        answers = [
            await client.post("/v1/captions", params=options, content=b"a dog", headers=RAW),
            await client.post(
                "/v1/captions", data={"n_best": "2", "words": "true"}, files=as_files(b"a dog")
            ),
            await client.post("/v1/captions", json=as_json(b"a dog", **options)),
        ]
    words = [{"text": "a", "log_prob": -0.5}, {"text": "dog", "log_prob": -0.5}]
    for answer in answers:
        assert answer.json()["results"][0]["candidates"] == [
            {"caption": text, "log_prob": p, "score": s, "confidence": sure, "words": words}
            for text, p, s, sure in [("a dog", -1, -0.5, 0.8), ("a dog 1", -2, -1.5, 0.7)]
        ]


async def test_the_body_has_the_last_word_over_the_query():
    async with serving() as client:
        answer = await client.post("/v1/captions?n_best=3", json=as_json(b"a dog", n_best=1))
    assert len(answer.json()["results"][0]["candidates"]) == 1


async def test_attention_comes_with_the_words_when_asked_for():
    async with serving() as client:
        answer = await client.post("/v1/captions?attention=true", content=b"dog", headers=RAW)
    (word,) = answer.json()["results"][0]["candidates"][0]["words"]
    assert word == {
        "text": "dog",
        "log_prob": -0.5,
        "attention": [[0.2, 0.2], [0.2, 0.2]],
        "sentinel": 0.2,
    }


@pytest.mark.parametrize(
    ("images", "options", "threads"),
    [
        ([b"a dog"], {"n_best": 3, "attention": True}, 0),
        ([b"a dog"] * 4, {"n_best": 1, "words": True}, 0),
        ([b"a dog"] * 16, {"n_best": 3}, 0),
        ([b"a dog"] * 2, {"n_best": 3, "attention": True}, 1),
        ([b"a dog", b"broken", b"a cat", b"poison"] * 4, {"n_best": 3, "words": True}, 1),
    ],
)
async def test_an_answer_with_many_words_is_written_in_a_thread(images, options, threads):
    """The loop goes on while a thread writes, and the answer is the same."""
    asked = []

    async def to_thread(write, *given):
        asked.append(write)
        return write(*given)

    async with serving() as client:
        alone = [
            await client.post("/v1/captions", json=as_json(image, **options)) for image in images
        ]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(asyncio, "to_thread", to_thread)
            answer = await client.post("/v1/captions", json=as_json(*images, **options))
    assert len(asked) == threads
    CaptionResponse.model_validate_json(answer.content)
    for one, together in zip(alone, answer.json()["results"], strict=True):
        assert together == (one.json()["results"][0] if one.is_success else together)
        assert together.get("problem", {}).get("code") == one.json().get("code")


async def test_order_is_kept_and_a_bad_image_among_others_carries_its_own_problem():
    async with serving() as client:
        answer = await client.post(
            "/v1/captions", files=as_files(b"one", b"broken", b"three", b"gif", b"bomb")
        )
    assert captions(answer) == ["one", None, "three", None, None]
    results = answer.json()["results"]
    assert [result["filename"] for result in results] == [f"{n}.jpg" for n in range(5)]
    problems = [Problem.model_validate(results[n]["problem"]) for n in (1, 3, 4)]
    assert [(one.status, one.code) for one in problems] == [
        (422, "undecodable_image"),
        (415, "unsupported_image"),
        (413, "too_many_pixels"),
    ]


@pytest.mark.parametrize(
    ("image", "status", "code"),
    [
        (b"broken", 422, "undecodable_image"),
        (b"gif", 415, "unsupported_image"),
        (b"bomb", 413, "too_many_pixels"),
        (b"poison", 500, "internal_error"),
    ],
)
async def test_a_lone_bad_image_is_the_problem_of_the_request(image, status, code):
    async with serving() as client:
        answer = await client.post("/v1/captions", content=image, headers=RAW)
    problem(answer, status, code)


async def test_a_poison_image_fails_alone_and_tells_nothing():
    async with serving() as client:
        answer = await client.post("/v1/captions", json=as_json(b"one", b"poison", b"three"))
    assert captions(answer) == ["one", None, "three"]
    told = answer.json()["results"][1]["problem"]
    assert told["code"] == "internal_error"
    assert "secret" not in answer.text


@pytest.mark.parametrize("media_type", ["text/plain", "video/mp4", "multipart/mixed"])
async def test_other_media_types_are_refused(media_type):
    async with serving() as client:
        answer = await client.post(
            "/v1/captions", content=b"a dog", headers={"content-type": media_type}
        )
    problem(answer, 415, "unsupported_media_type")


@pytest.mark.parametrize("media_type", ["image/png", "image/webp", "IMAGE/JPEG; q=1", "image/jpg"])
async def test_the_bytes_say_what_an_image_is_not_the_media_type(media_type):
    async with serving() as client:
        answer = await client.post(
            "/v1/captions", content=b"a dog", headers={"content-type": media_type}
        )
    assert captions(answer) == ["a dog"]


@pytest.mark.parametrize(
    ("content", "media_type"),
    [
        (b"{", "application/json"),
        (b"", "application/json"),
        (b"no boundary here", "multipart/form-data; boundary=x"),
        (b"--x\r\n", "multipart/form-data"),
        (b"--x\r\n\r\nno disposition\r\n--x--\r\n", "multipart/form-data; boundary=x"),
    ],
)
async def test_a_malformed_body_is_400(content, media_type):
    async with serving() as client:
        answer = await client.post(
            "/v1/captions", content=content, headers={"content-type": media_type}
        )
    problem(answer, 400, "malformed_body")


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({"json": {}}, "images"),
        ({"json": {"images": []}}, "images"),
        ({"json": {"images": [{"data": "&"}]}}, "images.0.data"),
        ({"json": {"images": [{"url": "http://localhost"}]}}, "url"),
        ({"json": {"images": [{}]}}, "images.0"),
        ({"json": as_json(b"a", beams=3)}, "beams"),
        ({"json": as_json(b"a", n_best=0)}, "n_best"),
        ({"json": as_json(b"a", n_best=4)}, "n_best"),
        ({"content": b"a", "headers": RAW, "params": {"n_best": "many"}}, "query.n_best"),
        ({"files": {"note": (None, "text")}}, "image"),
    ],
)
async def test_a_wrong_value_is_422_and_named(request_, field):
    async with serving() as client:
        answer = await client.post("/v1/captions", **request_)
    told = problem(answer, 422, "invalid_request")
    assert field in [error["field"] for error in told["errors"]]


async def test_more_images_than_allowed_are_refused_in_both_forms():
    images = [b"a"] * 3
    async with serving(max_images=2) as client:
        form = await client.post("/v1/captions", files=as_files(*images))
        body = await client.post("/v1/captions", json=as_json(*images))
        assert captions(await client.post("/v1/captions", json=as_json(b"a", b"b"))) == ["a", "b"]
    for answer in (form, body):
        assert problem(answer, 422, "too_many_images")["limit"] == 2


async def test_a_request_is_charged_for_all_its_images_at_once():
    captioner = FakeCaptioner()
    async with serving(captioner, max_queue=3, max_images=3) as client:
        captioner.gate.clear()
        first = asyncio.create_task(client.post("/v1/captions", json=as_json(b"1", b"2")))
        await asyncio.to_thread(captioner.entered.wait)
        refused = await client.post("/v1/captions", json=as_json(b"3", b"4"))
        second = asyncio.create_task(client.post("/v1/captions", content=b"5", headers=RAW))
        captioner.gate.set()
        assert captions(await first) == ["1", "2"]
        assert captions(await second) == ["5"]
    told = problem(refused, 503, "overloaded")
    assert int(refused.headers["retry-after"]) == told["retry_after"] >= 1


async def test_nobody_waits_longer_than_the_deadline():
    captioner = FakeCaptioner()
    async with serving(captioner, deadline_s=0.5, body_timeout_s=0.5) as client:
        captioner.gate.clear()
        answer = await client.post("/v1/captions", json=as_json(b"1", b"2"))
        captioner.gate.set()
    problem(answer, 504, "deadline_exceeded")


async def test_before_it_is_ready_captions_are_refused_with_the_reason():
    captioner = FakeCaptioner()
    captioner.gate.clear()
    captioner.warm_up = lambda _: captioner.gate.wait(10)
    async with serving(captioner, wait=False) as client:
        answer = await client.post("/v1/captions", content=b"a dog", headers=RAW)
        models = await client.get("/v1/models")
        captioner.gate.set()
    told = problem(answer, 503, "not_ready")
    assert told["reason"] in {"loading_checkpoint", "warming_up"}
    assert int(answer.headers["retry-after"]) == told["retry_after"]
    problem(models, 503, "not_ready")


async def test_unknown_paths_and_methods_are_problems_too():
    async with serving() as client:
        problem(await client.get("/nowhere"), 404, "not_found")
        problem(await client.post("/v1/captions//", content=b"a", headers=RAW), 404, "not_found")
        refused = await client.get("/v1/captions")
    problem(refused, 405, "method_not_allowed")
    assert refused.headers["allow"] == "POST"


async def test_probes_and_metrics_answer():
    async with serving() as client:
        for path in ("/livez", "/startupz", "/readyz", "/healthz"):
            answer = await client.get(path)
            assert answer.status_code == 200
            assert answer.json() == {"status": "ready", "reason": "ok"}
            assert answer.headers["cache-control"] == "no-store"
        metrics = await client.get("/metrics")
    assert metrics.headers["content-type"].startswith("text/plain")
    assert "caption_ready 1.0" in metrics.text


async def test_probes_answer_while_the_network_is_busy():
    captioner = FakeCaptioner()
    async with serving(captioner) as client:
        captioner.gate.clear()
        caller = asyncio.create_task(client.post("/v1/captions", content=b"a", headers=RAW))
        await asyncio.to_thread(captioner.entered.wait)
        for path in ("/livez", "/readyz", "/metrics"):
            assert (await client.get(path)).status_code == 200
        captioner.gate.set()
        assert captions(await caller) == ["a"]


async def test_the_checkpoints_served_are_listed():
    async with serving() as client:
        answer = await client.get("/v1/models")
    (listed,) = answer.json()["models"]
    assert (listed["name"], listed["version"], listed["sha256"]) == ("tiny", "1", SHA256)
    assert listed["search"]["beam_width"] == 3
    assert not {"recipe", "data", "files", "history"} & set(listed)


async def test_openapi_describes_every_form_and_every_problem():
    async with serving() as client:
        openapi = (await client.get("/openapi.json")).json()
    operation = openapi["paths"]["/v1/captions"]["post"]
    assert set(operation["requestBody"]["content"]) == {
        "multipart/form-data",
        "application/json",
        "application/octet-stream",
    }
    told = {
        code
        for answer in operation["responses"].values()
        for code in answer["content"].get("application/problem+json", {}).get("examples", {})
    }
    assert told == set(ALL_PROBLEM_TYPES) - {
        *("not_found", "method_not_allowed", "checkpoint_refused", "clip_too_long")
    }
    assert {parameter["name"] for parameter in operation["parameters"]} == {
        "n_best",
        "words",
        "attention",
        "min_confidence",
        "neutral",
        "style",
        "tags",
        "model",
        "X-Request-Timeout",
    }


async def test_openapi_is_what_generators_can_use():
    """A key in either header, a body of any bytes, and no name twice in an operation."""
    async with serving() as client:
        openapi = (await client.get("/openapi.json")).json()
    schemes = openapi["components"]["securitySchemes"]
    assert {each["type"] for each in schemes.values()} == {"http", "apiKey"}
    operation = openapi["paths"]["/v1/captions"]["post"]
    assert {name for each in operation["security"] for name in each} == set(schemes)
    form = operation["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
    names = [*form, *(parameter["name"] for parameter in operation["parameters"])]
    assert len(names) == len(set(names))
    ids = [each["operationId"] for path in openapi["paths"].values() for each in path.values()]
    assert len(ids) == len(set(ids))
    assert {"caption_images", "list_checkpoints", "livez", "readyz", "healthz"} <= set(ids)
    # openapi-generator's clients say JSON if it is offered, and send what comes first
    body = operation["requestBody"]["content"]
    assert next(iter(body)) == "application/json"
    image = body["application/json"]["schema"]["properties"]["images"]["items"]
    assert set(image["properties"]) == {"data", "url"}


async def test_every_reference_of_openapi_leads_somewhere():
    async with serving() as client:
        openapi = (await client.get("/openapi.json")).json()
    text = json.dumps(openapi)
    schemas = openapi["components"]["schemas"]
    for reference in text.split('"$ref": "')[1:]:
        name = reference.partition('"')[0].removeprefix("#/components/schemas/")
        assert name in schemas


async def test_the_examples_of_openapi_are_true():
    async with serving() as client:
        openapi = (await client.get("/openapi.json")).json()
        operation = openapi["paths"]["/v1/captions"]["post"]
        example = operation["requestBody"]["content"]["application/json"]["example"]
        answer = await client.post("/v1/captions", json={**example, **as_json(b"a dog")})
    assert captions(answer) == ["a dog"]
    for example in openapi["components"]["schemas"]["CaptionResponse"]["examples"]:
        CaptionResponse.model_validate(example)


async def test_a_request_id_is_echoed_when_harmless_and_else_replaced():
    async with serving() as client:
        for given, kept in [("abc-1", True), ("x" * 129, False), ("a b", False), ("é", False)]:
            request_id = httpx.Headers({"x-request-id": given}, encoding="latin-1")
            answer = await client.get("/livez", headers=request_id)
            assert (answer.headers["x-request-id"] == given) is kept
