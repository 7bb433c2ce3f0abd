"""The page and the documentation as files: what is sent, and what it may do."""

import gzip
import re
import tomllib
from pathlib import Path

import pytest
from pydantic import SecretStr

from app.web.page import assets
from support.api import problem
from support.fake import serving

ROOM = Path(assets.__file__).parent
ROOT = ROOM.parents[2]
OURS = [path for path in ROOM.rglob("*") if path.suffix in {".html", ".js", ".css", ".svg"}]
SHOWN = {"/": "text/html", "/docs": "text/html", "/page/app.js": "text/javascript"}
PACKED = "/docs/swagger-ui-bundle.js"
each_shown = pytest.mark.parametrize("path", sorted(SHOWN))


def test_every_file_is_served_and_every_served_file_is_there():
    named = {*assets._PAGE.values(), *assets._DOCS.values()}
    files = {path.relative_to(ROOM).as_posix() for path in ROOM.glob("*/*") if path.is_file()}
    licences = {file for file in files if "LICENSE" in file or "NOTICE" in file}
    assert len(licences) == 3
    assert files - licences == {file for file in named if "pyc" not in file}


def test_the_package_has_every_file():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    tools = project["tool"]["setuptools"]
    folders = {path.parent.name for path in ROOM.glob("*/*") if path.suffix != ".pyc"}
    assert folders == {"docs", "static"}
    for folder in folders:
        assert f"app.web.page.{folder}" in tools["packages"]
        assert tools["package-data"][f"app.web.page.{folder}"] == ["*"]


def test_nothing_that_is_ours_names_a_foreign_address():
    assert len(OURS) > 15
    for path in OURS:
        addresses = re.findall(r"(?:https?:)?//\w[\w.-]*\.\w+", path.read_text(encoding="utf-8"))
        assert set(addresses) <= {"http://www.w3.org"}, path


def test_no_markup_has_script_or_style_in_it():
    for path in (path for path in OURS if path.suffix == ".html"):
        text = path.read_text(encoding="utf-8")
        assert (
            re.findall(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)|javascript:", text) == []
        )


@each_shown
async def test_what_it_may_do_is_told_strictly(path):
    async with serving() as client:
        headers = (await client.get(path)).headers
    policy = headers["content-security-policy"]
    assert headers["content-type"].startswith(SHOWN[path])
    assert "unsafe" not in policy
    assert "http" not in policy
    for part in ("default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"):
        assert part in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


@each_shown
async def test_head_says_what_get_says(path):
    async with serving() as client:
        got, head = await client.get(path), await client.head(path)
        wrong = await client.post(path)
    assert (head.status_code, head.content) == (200, b"")
    told = ("content-length", "content-type", "content-security-policy", "etag")
    assert [head.headers[name] for name in told] == [got.headers[name] for name in told]
    assert problem(wrong, 405, "method_not_allowed")


async def test_who_has_a_file_does_not_get_it_again():
    async with serving() as client:
        for path in ("/", PACKED):
            first = await client.get(path)
            known = {"if-none-match": f'"other", W/{first.headers["etag"]}'}
            again = await client.get(path, headers=known)
            assert (again.status_code, again.content) == (304, b"")
            assert again.headers["etag"] == first.headers["etag"]
            changed = await client.get(path, headers={"if-none-match": '"other"'})
            assert changed.content == first.content


@pytest.mark.parametrize(
    ("accepted", "packed"),
    [
        ("gzip, br", True),
        ("br;q=1, x-gzip;q=0.5", True),
        ("identity", False),
        ("gzip;q=0", False),
        ("gzip; q=0.0, identity", False),
        ("", False),
    ],
)
async def test_a_large_script_goes_out_packed_to_who_takes_it(accepted, packed):
    async with serving() as client:
        answer = await client.get(PACKED, headers={"accept-encoding": accepted})
        other = await client.get(PACKED, headers={"accept-encoding": "br" if packed else "gzip"})
    stored = (ROOM / "docs/swagger-ui-bundle.js.gz").read_bytes()
    assert answer.content == gzip.decompress(stored)  # httpx has unpacked it
    assert ("content-encoding" in answer.headers) is packed
    assert int(answer.headers["content-length"]) == len(stored if packed else answer.content)
    assert answer.headers["vary"] == "accept-encoding"
    assert answer.headers["etag"] != other.headers["etag"]


async def test_the_page_needs_no_key_and_says_nothing_of_anybody():
    async with serving(api_keys=(SecretStr("key"),)) as client:
        for path in assets.PATHS:
            assert (await client.get(path)).status_code == 200
        problem(await client.get("/v1/models"), 401, "unauthorized")


async def test_without_the_page_the_documentation_stays():
    async with serving(page=False) as client:
        for path in ("/", "/page/app.js", "/page/dog.jpg"):
            problem(await client.get(path), 404, "not_found")
        assert (await client.get("/docs")).status_code == 200
        assert (await client.get(PACKED)).status_code == 200


async def test_the_page_asks_for_clips_where_they_are_on():
    async with serving() as client:
        text = (await client.get("/")).text
    for words in ("Choose photos or clips", "Drop photos or clips", "Photos and clips"):
        assert words in text
    async with serving(clips=False) as client:
        answer = await client.get("/")
    assert re.search(r"Choose photos\s*</button>", answer.text)
    assert "Drop photos anywhere on this page" in answer.text
    assert not re.search(r"\bclips\b", answer.text)


async def test_the_documentation_finds_its_files_with_and_without_a_slash_at_its_end():
    async with serving() as client:
        text = (await client.get("/docs")).text
        linked = re.findall(r'(?:src|href)="(docs/[^"]+)"', text)
        assert len(linked) == 5
        for link in linked:
            near = await client.get(f"/{link}")
            deep = await client.get(f"/docs/{link}")
            assert (near.status_code, deep.content) == (200, near.content)


async def test_no_path_leads_to_other_files():
    async with serving() as client:
        for path in ("/page/assets.py", "/page/index.html", "/page/../assets.py", "/docs/NOTICE"):
            problem(await client.get(path), 404, "not_found")


async def test_the_files_of_the_page_are_counted_together():
    async with serving() as client:
        for path in ("/", "/page/app.js", "/page/style.css", "/docs/docs.js"):
            await client.get(path)
        counts = (await client.get("/metrics")).text
    for route, count in {"/": 1, "/page/*": 2, "/docs/*": 1}.items():
        assert f'outcome="ok",route="{route}"}} {count}.0' in counts
