"""The three forms of a request, and bodies made to waste our time."""

import asyncio
import contextlib
import json
import time

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.web import multipart
from app.web.multipart import Part, TooManyParts
from app.web.problems import MalformedBody
from app.web.schemas import JsonRequest, Options
from support.api import RAW, as_json, captions, problem
from support.fake import FakeCaptioner, pixels, serving

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


@pytest.mark.parametrize("boundary", ["", '""', "x" * 300, '"x', '"x"y', "x" + ";" * 2**20])
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
        wrong = {f"o{n}": 1 for n in range(50)}
        answer = await client.post("/v1/captions", json={"images": [], **wrong})
    assert len(problem(answer, 422, "invalid_request")["errors"]) == 16


@pytest.mark.parametrize("query", ["&".join(f"o{n}=1" for n in range(20)), "o" * 2000, "&" * 40])
async def test_a_long_query_is_refused_before_it_is_read(query, monkeypatch):
    monkeypatch.setattr(Options, "model_validate", None)
    async with serving() as client:
        answer = await client.post(f"/v1/captions?{query}", content=b"a", headers=RAW)
    (error,) = problem(answer, 422, "invalid_request")["errors"]
    assert error["field"] == "query"
    assert len(answer.content) < 500


LONG = "A" * 900  # below what is refused unread


@pytest.mark.parametrize(
    "request_",
    [
        {"params": {LONG: "1"}, "content": b"a", "headers": RAW},
        {"json": {"images": [], LONG: 1}},
        {"json": {"images": [{LONG: ""}]}},
        {"files": [("image", ("a", b"a"))], "data": {LONG: "1"}},
    ],
)
async def test_of_a_long_name_an_answer_has_only_the_beginning(request_):
    async with serving() as client:
        answer = await client.post("/v1/captions", **request_)
    fields = [error["field"] for error in problem(answer, 422, "invalid_request")["errors"]]
    (cut,) = [field for field in fields if "A" in field]
    assert cut.endswith("A" * 64 + "…")
    assert len(cut) < 80


@pytest.mark.parametrize(
    "name", ["a\nb", "a\x1b[31mb", "a\u202eb", "a\u2028b", "a\x85b", "a\x00b", "a\u2066b"]
)
async def test_a_name_cannot_move_the_cursor_or_turn_the_writing_around(name):
    async with serving() as client:
        query = await client.post("/v1/captions", params={name: 1}, content=b"a", headers=RAW)
        body = await client.post("/v1/captions", json={"images": [], name: 1})
        form = HEAD.replace(b'"a"', f'"{name}"'.encode()) + b"a\r\n--x--"
        file = await client.post("/v1/captions", content=form, headers=FORM)
    assert file.json()["results"][0]["filename"] == "a\ufffd" + name[2:]
    for answer in (query, body):
        told = problem(answer, 422, "invalid_request")["errors"]
        assert any("a\ufffd" in error["field"] for error in told)
        assert all(name not in error["field"] for error in told)


@pytest.mark.parametrize(
    ("name", "echoed"),
    [
        ("日本 👩\u200d👧 می\u200cبینم.jpg", "日本 👩\u200d👧 می\u200cبینم.jpg"),
        ("n" * 255, "n" * 255),
        ("n" * 3000, "n" * 255 + "…"),
    ],
)
async def test_a_file_name_comes_back_as_it_was_unless_no_file_can_have_it(name, echoed):
    head = f'--x\r\ncontent-disposition: form-data; name="image"; filename="{name}"\r\n\r\n'
    async with serving() as client:
        answer = await client.post(
            "/v1/captions", content=head.encode() + b"a\r\n--x--", headers=FORM
        )
    assert answer.json()["results"][0]["filename"] == echoed


@pytest.mark.parametrize(
    "body",
    [
        b'{"images":[{"data":"YQ=="}],"%s":1}' % (b"x" * MANY_BYTES),
        b'{"images":[{"data":"YQ=="}],"n_best":"%s"}' % (b"7" * MANY_BYTES),
        b'{"images":[{"data":"YQ=="}],"n_best":%s}' % (b"7" * MANY_BYTES),
        b'{"images":["%s"]}' % (b"A" * MANY_BYTES),
        b" " * MANY_BYTES,
    ],
)
async def test_what_is_long_in_json_and_no_image_is_refused_before_it_is_parsed(body, monkeypatch):
    monkeypatch.setattr(JsonRequest, "model_validate_json", None)
    async with serving() as client:
        answer = await client.post(
            "/v1/captions", content=body, headers={"content-type": "application/json"}
        )
    assert problem(answer, 422, "invalid_request")["errors"][0]["field"] == "body"
    assert len(answer.content) < 500


async def test_json_may_be_pretty_and_escape_slashes_and_have_images_of_any_length():
    images = [b"\xff" * 3000, b"\xfb\xef\xbe" * 2**18, b"a", b"ab", b"abc"]
    body = json.dumps({"n_best": 2, **as_json(*images), "words": True}, indent=8)
    captioner = FakeCaptioner()
    captioner.read = lambda data, **_: pixels(str(len(data)).encode())
    async with serving(captioner) as client:
        answer = await client.post(
            "/v1/captions",
            content=body.replace("/", "\\/"),
            headers={"content-type": "application/json"},
        )
    assert captions(answer) == [str(len(image)) for image in images]


@pytest.mark.parametrize("padded", ["A" * (2**18 - 2) + "==", "A" * (2**18 - 4) + "A===", "AA"])
async def test_padding_is_only_at_the_end_however_long_base64_is(padded):
    async with serving() as client:
        body = {"images": [{"data": padded + "AAAA" * 8}]}
        answer = await client.post("/v1/captions", json=body)
    problem(answer, 422, "invalid_request")


@pytest.mark.parametrize(
    "disposition",
    [b";" * 3900, b';a="' * 900, b';a="' + b";" * 3800, b'; a="' + b'\\"' * 1900, b";=" * 1900],
)
def test_no_parameters_of_a_part_cost_more_than_reading_them(disposition):
    body = b"--x\r\ncontent-disposition: form-data; name=n" + disposition + b"\r\n\r\nv\r\n--x--"
    plain = b"--x\r\ncontent-disposition: form-data; name=" + b"n" * 3900 + b"\r\n\r\nv\r\n--x--"
    assert spent_s(body) < 50 * spent_s(plain)  # it was 300 times


def spent_s(body):
    """The least of several times: what else the machine does only adds."""
    times_s = []
    for _ in range(20):
        began_s = time.thread_time()
        with contextlib.suppress(MalformedBody):
            parse(body)
        times_s.append(time.thread_time() - began_s)
    return min(times_s)


@pytest.mark.parametrize(
    ("disposition", "part"),
    [
        ('name="image"; filename="a;b.jpg"', Part("image", "a;b.jpg", b"v")),
        (r'name="a\"b"; filename="c\\"', Part('a"b', "c\\", b"v")),
        (r'name="n"; filename="C:\photos\a.jpg"', Part("n", "a.jpg", b"v")),
        ("NAME = n ; filename=a b.jpg ; x", Part("n", "a b.jpg", b"v")),
        ('name=n;filename="";', Part("n", "", b"v")),
        ("name=n; filename*=utf-8''a", Part("n", None, b"v")),
    ],
)
def test_parameters_are_read_as_browsers_and_libraries_write_them(disposition, part):
    body = f"--x\r\ncontent-disposition: form-data; {disposition}\r\n\r\nv\r\n--x--"
    assert parse(body.encode()) == [part]


@pytest.mark.parametrize(
    ("form", "body_bytes", "threads"),
    [("multipart", 2**20, 0), ("multipart", 2**23, 1), ("json", 2**16, 0), ("json", 2**20, 1)],
)
async def test_a_large_body_is_read_in_a_thread(form, body_bytes, threads):
    """The loop goes on while a thread reads: whoever probes is not kept waiting."""
    captioner = FakeCaptioner()
    captioner.read = lambda *_, **__: pixels(b"large")
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
