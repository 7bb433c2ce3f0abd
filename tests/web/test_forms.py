"""The three forms of a request, and bodies made to waste our time."""

import asyncio
import base64
import contextlib
import json
import time

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.web import base64_text, multipart
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
        {"json": {"images": [], LONG: 1}},
        {"json": {"images": [{LONG: ""}]}},
        {"files": {LONG: (None, b"a")}},
    ],
)
async def test_of_a_long_name_an_answer_has_only_the_beginning(request_):
    async with serving() as client:
        answer = await client.post("/v1/captions", **request_)
    told = problem(answer, 422, "invalid_request")
    assert "A" * 64 + "…" in answer.text
    assert "A" * 65 not in answer.text
    assert len(told["detail"]) < 240


@pytest.mark.parametrize(
    "name", ["a\nb", "a\x1b[31mb", "a\u202eb", "a\u2028b", "a\x85b", "a\x00b", "a\u2066b"]
)
async def test_a_name_cannot_move_the_cursor_or_turn_the_writing_around(name):
    async with serving() as client:
        field = HEAD.replace(b'"image"; filename="a"', f'"{name}"'.encode()) + b"a\r\n--x--"
        other = await client.post("/v1/captions", content=field, headers=FORM)
        body = await client.post("/v1/captions", json={"images": [], name: 1})
        form = HEAD.replace(b'"a"', f'"{name}"'.encode()) + b"a\r\n--x--"
        file = await client.post("/v1/captions", content=form, headers=FORM)
    assert file.json()["results"][0]["filename"] == "a\ufffd" + name[2:]
    for answer in (other, body):
        told = problem(answer, 422, "invalid_request")["errors"]
        assert any("a\ufffd" in error["field"] + error["message"] for error in told)
        assert all(name not in error["field"] + error["message"] for error in told)


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
        b'{"images":[{"%s":1}]}' % (b"A" * MANY_BYTES),
        b'{"images":["a", "%s":1]}' % (b"A" * MANY_BYTES),
        b'{"images":[' + b" " * MANY_BYTES + b'"a"]}',
        b'{"note":["%s"]}'.replace(b"[", b"").replace(b"]", b"") % (b"A" * MANY_BYTES),
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


@pytest.mark.parametrize("padded", ["A" * (2**18 - 2) + "==", "A" * (2**18 - 4) + "A===", "A="])
async def test_padding_is_only_at_the_end_however_long_base64_is(padded):
    async with serving() as client:
        body = {"images": [{"data": padded + "AAAA" * 8}]}
        answer = await client.post("/v1/captions", json=body)
    problem(answer, 422, "invalid_request")


@pytest.mark.parametrize(
    "disposition",
    [
        b"; filename*=x" + b'"' + b'\\"' * 1900,
        b"; filename*=a'" * 300,
        b'; filename="' + b"=?a?b?" * 600 + b'"',
        b";" * 3900,
        b';a="' * 900,
        b';a="' + b";" * 3800,
        b'; a="' + b'\\"' * 1900,
        b";=" * 1900,
    ],
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
        ("name=n; filename*=utf-8''a", Part("n", "a", b"v")),
        ("name=n; filename=b; filename*=UTF-8'de'%D1%84.jpg", Part("n", "ф.jpg", b"v")),
        ("name=n; filename*=\"utf-8''%D1%84\"", Part("n", "ф", b"v")),
        ("name=n; filename*=iso-8859-1''%e9", Part("n", "é", b"v")),
        ("name=n; filename=b; filename*=x-none''a", Part("n", "b", b"v")),
        ("name=n; filename=\"a; filename*=utf-8''b\"", Part("n", "a; filename*=utf-8''b", b"v")),
        ('name=n; filename="=?utf-8?B?0YQ=?= =?utf-8?Q?=D1=84?="', Part("n", "фф", b"v")),
        ('name=n; filename="=?none?B?0YQ=?="', Part("n", "=?none?B?0YQ=?=", b"v")),
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


PNG_HEAD = b"\x89PNG\r\n\x1a\n"  # as much of an image as tells the form
TWO = [b"one", b"two"]
BOUNDED = FORM["content-type"]


def part(name, data, *more, filename='"a.jpg"'):
    file = "" if filename is None else f"; filename={filename}"
    lines = [f'content-disposition: form-data; name="{name}"{file}', *more, ""]
    return b"--x\r\n" + "".join(f"{line}\r\n" for line in lines).encode() + data + b"\r\n"


async def posted(content, headers=FORM, path="/v1/captions", **settings):
    async with serving(**settings) as client:
        return await client.post(path, content=content, headers=headers)


@pytest.mark.parametrize(
    "name",
    ["image", "images", "image[]", "images[0]", "image1", "Image", "file", "files", "files[]",
     "photo", "upload", "filepond", "anything"],
)  # fmt: skip
async def test_a_file_is_an_image_whatever_its_field_is_called(name):
    answer = await posted(part(name, b"one") + part(name, b"two") + b"--x--")
    assert captions(answer) == ["one", "two"]
    assert answer.json()["results"][0]["filename"] == "a.jpg"


async def test_a_field_for_images_comes_before_other_files():
    answer = await posted(part("thumbnail", b"two") + part("image", b"one") + b"--x--")
    assert captions(answer) == ["one"]


async def test_a_part_of_an_image_field_needs_no_file_name():
    answer = await posted(part("image", b"one", filename=None) + b"--x--")
    assert captions(answer) == ["one"]
    assert answer.json()["results"][0]["filename"] is None


async def test_what_widgets_add_is_left_alone():
    extra = [part(name, b"v" * 2000, filename=None) for name in ("csrf", "relativePath", "type")]
    note = part("image", b'{"id": 1}', filename=None)
    empty = part("image", b"", filename='""')
    options = part("n_best", b"", filename=None) + part("words", b"  ", filename=None)
    answer = await posted(b"".join([*extra, note, empty, options, part("image", b"one"), b"--x--"]))
    assert captions(answer) == ["one"]
    assert "words" not in answer.json()["results"][0]["candidates"][0]


@pytest.mark.parametrize(
    ("form", "field", "told"),
    [
        (part("image", b"", filename='""'), "image", "No file was chosen"),
        (part("note", b"hello", filename=None), "image", "the form has only note"),
        (b"", "image", "it is empty"),
        (part("image", b"!", "content-transfer-encoding: base64"), "image", "expected base64"),
        (part("n_best", b"three", filename=None) + part("image", b"a"), "n_best", "integer"),
    ],
)
async def test_a_form_without_an_image_is_told_what_it_has(form, field, told):
    answer = await posted(form + b"--x--")
    body = problem(answer, 422, "invalid_request")
    assert body["errors"][0]["field"] == field
    assert told in body["errors"][0]["message"]
    assert told in body["detail"]


@pytest.mark.parametrize(
    ("form", "content_type", "told"),
    [
        (part("image", b"a") + b"--x--", "multipart/form-data", "names no boundary"),
        (part("image", b"a") + b"--x--", "multipart/form-data; boundary=y", "is not in the body"),
        (part("image", b"a") + part("b", b"")[:-9], BOUNDED, "Part 2 of the form is cut"),
        (b"--x\r\n\r\nv\r\n--x--", BOUNDED, "Part 1 of the form has no"),
        (part("image", b"a").replace(b"name=", b"nome=") + b"--x--", BOUNDED, "no name"),
    ],
)  # fmt: skip
async def test_a_malformed_form_is_told_where(form, content_type, told):
    answer = await posted(form, {"content-type": content_type})
    assert told in problem(answer, 400, "malformed_body")["detail"]


@pytest.mark.parametrize(
    "headers",
    [{}, {"content-type": "application/octet-stream"}, {"content-type": ""}, RAW],
)
async def test_without_a_media_type_that_says_more_a_body_is_an_image(headers):
    assert captions(await posted(b"one", headers)) == ["one"]


@pytest.mark.parametrize(
    "media_type",
    ["text/plain", "application/x-www-form-urlencoded", "application/json", "video/mp4",
     "multipart/form-data", FORM["content-type"]],
)  # fmt: skip
async def test_what_begins_like_an_image_is_one_whatever_the_media_type_says(media_type):
    captioner = FakeCaptioner()
    captioner.read = lambda *_, **__: pixels(b"one")
    async with serving(captioner) as client:
        for body in (PNG_HEAD, b"data:image/png;base64," + b"iVBORw0KGgo="):
            answer = await client.post(
                "/v1/captions", content=body, headers={"content-type": media_type}
            )
            assert captions(answer) == ["one"]


@pytest.mark.parametrize("media_type", ["text/plain", "", "application/x-www-form-urlencoded"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
async def test_what_begins_like_json_is_json(media_type, mark):
    body = mark + b" \r\n" + json.dumps(as_json(b"one")).encode()
    assert captions(await posted(body, {"content-type": media_type})) == ["one"]


@pytest.mark.parametrize("coding", ["utf-8-sig", "utf-16"])
async def test_json_may_begin_with_a_byte_order_mark(coding):
    body = json.dumps(as_json(*TWO)).encode(coding)
    assert captions(await posted(body, {"content-type": "application/json"})) == ["one", "two"]


@pytest.mark.parametrize(
    "body",
    [
        {"images": ["b25l", "dHdv"]},
        {"images": [{"data": "b25l"}, "data:image/jpeg;base64,dHdv"]},
        {"image": ["b25l", "dHdv"]},
        {"images": ["b25l\n", " dH\r\ndv\n"], "n_best": None, "words": ""},
        {"images": ["data:;base64,b25l", "DATA:image/png;charset=utf-8;BASE64,dHdv"]},
    ],
)
async def test_json_has_images_in_several_shapes(body):
    async with serving() as client:
        assert captions(await client.post("/v1/captions", json=body)) == ["one", "two"]


@pytest.mark.parametrize("image", ["b25l", {"data": "b25l"}])
@pytest.mark.parametrize("member", ["image", "images"])
async def test_a_lone_image_needs_no_list(image, member):
    async with serving() as client:
        assert captions(await client.post("/v1/captions", json={member: image})) == ["one"]


@given(st.binary(max_size=200), st.sampled_from(["", "\n", "\r\n"]), st.booleans(), st.booleans())
def test_base64_in_every_dress_is_what_it_was(data, line_end, padded, safe):
    text = (base64.urlsafe_b64encode if safe else base64.b64encode)(data).decode()
    lines = line_end.join(text[at : at + 76] for at in range(0, len(text), 76)) + line_end
    assert base64_text.decoded((lines if padded else lines.replace("=", "")).encode()) == data


@pytest.mark.parametrize("text", ["A", "AA=A", "AAAA====", "!!!!", "A" * 2**18 + "A", "é"])
def test_what_is_not_base64_is_refused(text):
    with pytest.raises(ValueError, match="expected base64"):
        base64_text.decoded(text.encode())


@pytest.mark.parametrize(
    "text", ["data:,a", "data:image/png,%00", "data:" + "x" * 300 + ";base64,AA"]
)
def test_a_data_uri_without_base64_is_told_so(text):
    with pytest.raises(ValueError, match="expected a data: URI with base64"):
        base64_text.decoded(text.encode())


def test_a_data_uri_may_be_percent_encoded():
    text = b"data:image/png;base64,%2b%2F%2B%2f%0D%0A"
    assert base64_text.decoded(text) == b"\xfb\xff\xbf"


async def test_a_line_break_in_a_string_of_json_is_told_so():
    answer = await posted(b'{"images": ["b25l\n"]}', {"content-type": "application/json"})
    assert "a line break in a string" in problem(answer, 400, "malformed_body")["detail"]


@pytest.mark.parametrize("query", ["_=17", "utm_source=a&cache=b", "n_best=&words=", "nbest=3"])
async def test_what_a_query_says_besides_is_ignored(query):
    assert captions(await posted(b"one", RAW, f"/v1/captions?{query}")) == ["one"]


@pytest.mark.parametrize("headers", [RAW, {}, {"content-type": "application/octet-stream"}])
async def test_an_empty_body_is_told_so(headers):
    assert (
        "The body is empty" in problem(await posted(b"", headers), 422, "invalid_request")["detail"]
    )


async def test_a_urlencoded_form_is_told_what_to_send():
    headers = {"content-type": "application/x-www-form-urlencoded"}
    answer = await posted(b"image=abc&words=true", headers)
    assert "multipart/form-data" in problem(answer, 415, "unsupported_media_type")["detail"]
