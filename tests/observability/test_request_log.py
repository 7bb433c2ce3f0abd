"""The access log: a line for each request, with who asked, how much, and what answered."""

import hashlib

from structlog.testing import capture_logs

from support.api import RAW, as_files
from support.fake import serving
from support.photos import photo

KEY = {**RAW, "x-api-key": "secret"}


async def line_of(client, *args, **kwargs):
    with capture_logs() as lines:
        await client.post(*args, **kwargs)
    (line,) = (each for each in lines if each["event"] == "request")
    return line


async def test_a_line_says_who_asked_how_much_and_what_answered():
    data = photo(1, width=640, height=480)
    async with serving(api_keys="secret") as client:
        line = await line_of(client, "/v1/captions", content=data, headers=KEY)
    assert line["client"] == "127.0.0.1"
    assert line["key"] == hashlib.sha256(b"secret").hexdigest()[:12]
    assert "secret" not in str(line)
    assert line["bytes"] == len(data)
    assert line["images"] == 1
    assert line["pixels"] == 640 * 480
    assert line["checkpoint"] == "tiny:1"
    assert "captions" not in line


async def test_captions_are_told_where_a_setting_says_so():
    async with serving(log_captions=True) as client:
        files = as_files(b"a dog", b"broken", b"a cat")
        line = await line_of(client, "/v1/captions", files=files)
    assert line["captions"] == ["a dog", None, "a cat"]
    assert line["images"] == 3
    assert "key" not in line


async def test_a_caption_that_is_withheld_is_not_told_there_either():
    async with serving(log_captions=True, min_confidence=1) as client:
        line = await line_of(client, "/v1/captions", content=b"a dog", headers=RAW)
    assert line["captions"] == [None]


async def test_the_line_of_a_dialect_says_the_same():
    async with serving(log_captions=True) as client:
        line = await line_of(client, "/hf", content=photo(1), headers=RAW)
    assert line["pixels"] == 96 * 72
    assert line["checkpoint"] == "tiny:1"
    assert len(line["captions"]) == 1


async def test_who_is_refused_has_a_line_with_what_arrived():
    async with serving(api_keys="secret", max_upload_bytes=1000) as client:
        refused = await line_of(client, "/v1/captions", content=b"a" * 2000, headers=KEY)
        stranger = await line_of(client, "/v1/captions", content=b"a", headers=RAW)
    assert refused["outcome"] == "body_too_large"
    assert refused["key"]
    assert stranger["outcome"] == "unauthorized"
    assert "key" not in stranger
    assert stranger["client"] == "127.0.0.1"
