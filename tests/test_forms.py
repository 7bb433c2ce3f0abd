"""The three forms of a request, and bodies made to waste our time."""

import asyncio
import json
import time

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import multipart
from app.multipart import Part, TooManyParts
from app.problems import MalformedBody
from fake import FakeCaptioner, Pixels, serving
from test_api import captions, problem

MANY_BYTES = 8 * 2**20
HEAD = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
FORM = {"content-type": "multipart/form-data; boundary=x"}
names = st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1, max_size=20)


def parse(body, *, max_parts=9, boundary="x"):
    return multipart.parse(f"multipart/form-data; boundary={boundary}", body, max_parts=max_parts)


@given(st.lists(st.tuples(names, names, st.binary(max_size=200)), min_size=1, max_size=5))
def test_what_a_client_packs_comes_out_as_it_was(parts):
    files = [(name, (filename, data)) for name, filename, data in parts]
    request = httpx.Request("POST", "http://test", files=files)
    found = multipart.parse(request.headers["content-type"], request.read(), max_parts=5)
    assert found == [Part(name, filename, data) for name, filename, data in parts]


@given(st.binary(max_size=300))
def test_anything_else_is_malformed_and_nothing_worse(body):
    with pytest.raises(MalformedBody):
        parse(body.replace(b"--x", b""))


def test_a_preamble_an_epilogue_and_padding_are_allowed():
    field = b'--x \t\r\ncontent-disposition: form-data; name="n"\r\n\r\nv\r\n--x--\r\nbye'
    assert parse(b"hello\r\n" + field) == [Part("n", None, b"v")]


def test_what_only_looks_like_a_boundary_is_data():
    data = b"\r\n-x\r\n --x--x\r\n--"
    assert parse(HEAD + data + b"\r\n--x--") == [Part("image", "a", data)]


@pytest.mark.parametrize(
    "body",
    [
        HEAD + b"cut short",
        HEAD + b"data\r\n--x",
        HEAD + b"data\r\n--xyz--\r\n",
        HEAD.replace(b"--x\r\n", b"--x junk\r\n") + b"\r\n--x--",
        HEAD.replace(b"name=", b"nome=") + b"\r\n--x--",
        HEAD.replace(b"\r\n\r\n", b"\r\nx: " + b"y" * 5000 + b"\r\n\r\n") + b"\r\n--x--",
        b"--x\r\ncontent-type: text/plain\r\n\r\n\r\n--x--",
    ],
)
def test_a_form_that_breaks_the_syntax_is_malformed(body):
    with pytest.raises(MalformedBody):
        parse(body)


@pytest.mark.parametrize("boundary", ["", '""', "x" * 300])
def test_a_boundary_that_is_none_is_malformed(boundary):
    with pytest.raises(MalformedBody):
        parse(HEAD + b"\r\n--x--", boundary=boundary)


def test_parts_are_counted():
    assert len(parse((HEAD + b"\r\n") * 3 + b"--x--", max_parts=3)) == 3
    with pytest.raises(TooManyParts):
        parse((HEAD + b"\r\n") * 4 + b"--x--", max_parts=3)


@pytest.mark.parametrize("filling", [b"\r\n--", b"\r", b"\r\n--y", b"-", b"\r\n\r\n"])
def test_a_form_of_nothing_but_almost_boundaries_costs_no_more_than_a_photo(filling):
    body = HEAD + filling * (MANY_BYTES // len(filling)) + b"\r\n--x--"
    began_s = time.thread_time()
    (part,) = parse(body)
    assert time.thread_time() - began_s < 0.3  # looking at every byte took 1.6
    assert len(part.data) > MANY_BYTES - 10


@pytest.mark.parametrize("filling", [b"[],", b'{"data":"&"},', b'{"data":""},', b"0,"])
async def test_a_json_list_without_end_is_refused_shortly(filling):
    body = b'{"images":[' + filling * (MANY_BYTES // len(filling)) + b"{}]}"
    async with serving() as client:
        began_s = time.process_time()
        answer = await client.post(
            "/v1/captions", content=body, headers={"content-type": "application/json"}
        )
        spent_s = time.process_time() - began_s
    problem(answer, 422, "too_many_images")
    assert spent_s < 1  # it took 40 and named every member
    assert len(answer.content) < 1000


async def test_an_answer_does_not_grow_with_the_mistakes_in_the_question():
    async with serving() as client:
        query = "&".join(f"o{n}=1" for n in range(500))
        answer = await client.post(f"/v1/captions?{query}", content=b"a")
    assert len(problem(answer, 422, "invalid_request")["errors"]) == 16


@pytest.mark.parametrize(
    ("form", "body_bytes", "threads"),
    [("multipart", 2**20, 0), ("multipart", 2**23, 1), ("json", 2**16, 0), ("json", 2**20, 1)],
)
async def test_a_large_body_is_read_in_a_thread(form, body_bytes, threads):
    """The loop goes on while a thread reads: whoever probes is not kept waiting."""
    captioner = FakeCaptioner()
    captioner.read = lambda *_, **__: Pixels(b"large")
    if form == "json":
        body = json.dumps({"images": [{"data": "A" * body_bytes}]}).encode()
        headers = {"content-type": "application/json"}
    else:
        body, headers = HEAD + b"y" * body_bytes + b"\r\n--x--", FORM
    asked = []

    async def to_thread(reader, *given):
        asked.append(reader)
        return reader(*given)

    async with serving(captioner) as client:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(asyncio, "to_thread", to_thread)
            answer = await client.post("/v1/captions", content=body, headers=headers)
    assert captions(answer) == ["large"]
    assert len(asked) == threads
