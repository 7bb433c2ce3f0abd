"""Images by web address: what is allowed, what never is, and limits on all of it."""

import asyncio
import contextlib
import ipaddress
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from app.web import fetching
from app.web.fetching import _is_public, _matches
from support.api import RAW, as_json, captions, problem
from support.fake import serving, until

HOSTS = "photos.test"


class Site(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.asked.append((self.headers["host"], self.path))
        getattr(self, self.path.partition("?")[0].strip("/").replace(".", "_"), self.nothing)()

    def say(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in {"content_length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)

    def a_jpg(self):
        self.say(200, b"a dog")

    def large(self):
        self.say(200, b"x" * 5000)

    def short(self):
        self.say(200, b"a d", content_length=5)
        self.close_connection = True

    def endless(self):
        self.say(200, b"x", content_length=10**9)
        with contextlib.suppress(OSError):
            while not self.server.ended.wait(0.02):
                self.wfile.write(b"x")

    def silent(self):
        self.server.ended.wait(20)

    def coded(self):
        self.say(200, b"a dog", content_encoding="gzip")

    def round(self):
        self.say(302, location="/round")

    def moved(self):
        self.say(301, location="/a.jpg?x=1")

    def elsewhere(self):
        self.say(302, location="http://other.test/a.jpg")

    def inside(self):
        self.say(302, location="http://169.254.169.254/latest/meta-data")

    def file(self):
        self.say(302, location="file:///etc/passwd")

    def nothing(self):
        self.say(404, b"no")

    def log_message(self, *_):
        pass


@pytest.fixture
def site(monkeypatch):
    """Serve on loopback, which is taken for public for once: its name is ``photos.test``."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    server.asked, server.ended = [], threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found = socket.getaddrinfo

    def getaddrinfo(host, *more, **options):
        name = host if isinstance(host, str) else host.decode()
        return found("127.0.0.1" if name.endswith(".test") else host, *more, **options)

    connect = socket.create_connection
    monkeypatch.setattr(fetching.socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(
        fetching.socket,
        "create_connection",
        lambda address, **more: connect((address[0], server.server_port), **more),
    )
    monkeypatch.setattr(fetching, "_is_public", lambda text: text == "127.0.0.1")
    yield server
    server.ended.set()
    server.shutdown()
    server.server_close()


def by_url(path, host="photos.test"):
    return {"images": [{"url": f"http://{host}{path}"}]}


async def asked_for(*bodies, **settings):
    async with serving(**{"fetch_urls": HOSTS, **settings}) as client:
        return [await client.post("/v1/captions", json=body) for body in bodies]


async def test_an_address_is_fetched_in_every_shape_of_a_request(site):
    url = "http://photos.test/a.jpg"
    shapes = [{"url": url}, {"images": [url]}, {"images": [{"url": url}]}, {"image": url}]
    for answer in await asked_for(*shapes):
        assert captions(answer) == ["a dog"]
        assert answer.json()["results"][0]["filename"] == "a.jpg"
    async with serving(fetch_urls=HOSTS) as client:
        answer = await client.post("/v1/captions", params={"url": url})
        assert captions(answer) == ["a dog"]
    assert site.asked[0] == ("photos.test", "/a.jpg")


async def test_addresses_and_bytes_keep_their_order_and_a_bad_address_fails_alone(site):
    body = as_json(b"one", b"two")
    body["images"][1:1] = ["http://photos.test/none", "http://photos.test/moved"]
    (answer,) = await asked_for(body)
    assert captions(answer) == ["one", None, "a dog", "two"]
    assert answer.json()["results"][1]["problem"]["code"] == "fetch_failed"
    assert answer.json()["results"][1]["problem"]["detail"] == "the address answered 404"


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/none", "answered 404"),
        ("/coded", "Content-Encoding"),
        ("/round", "redirects too often"),
        ("/elsewhere", "not one of those in CAPTION_FETCH_URLS"),
        ("/inside", "not one of those in CAPTION_FETCH_URLS"),
        ("/file", "expected http"),
        ("/large", "too large"),
        ("/endless", "too large"),
        ("/silent", "did not answer in time"),
        ("/short", "ended early"),
    ],
)
async def test_what_leads_to_no_image_is_told_and_bounded(site, path, told):
    began_s = time.monotonic()
    (answer,) = await asked_for(by_url(path), max_upload_bytes=1000, fetch_timeout_s=1)
    body = problem(answer, 422, "fetch_failed")
    if path == "/endless":  # byte by byte: whichever limit comes first
        assert told in body["detail"] or "in time" in body["detail"]
    else:
        assert told in body["detail"]
    assert time.monotonic() - began_s < 8


async def test_a_redirect_into_the_network_is_not_followed_whatever_hosts_are_allowed(site):
    (answer,) = await asked_for(by_url("/inside"), fetch_urls="*")
    assert "not public" in problem(answer, 422, "fetch_failed")["detail"]


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1/", "http://localhost/", "http://127.1/", "http://2130706433/",
     "http://[::1]/", "http://[::ffff:127.0.0.1]/", "http://0.0.0.0/"],
)  # fmt: skip
async def test_nothing_of_the_machine_itself_is_asked(url, monkeypatch):
    connected = []
    monkeypatch.setattr(
        fetching.socket, "create_connection", lambda *given, **_: connected.append(given)
    )
    (answer,) = await asked_for({"url": url}, fetch_urls="*")
    assert "not public" in problem(answer, 422, "fetch_failed")["detail"]
    assert connected == []


async def test_a_name_that_changes_between_look_up_and_connection_is_found_out(site, monkeypatch):
    """The peer of the socket is looked at, not only what the name was said to mean."""
    public = iter([True, False])
    monkeypatch.setattr(fetching, "_is_public", lambda _: next(public))
    (answer,) = await asked_for(by_url("/a.jpg"))
    assert "not public" in problem(answer, 422, "fetch_failed")["detail"]
    assert site.asked == []


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
     "0.0.0.1", "224.0.0.1", "255.255.255.255", "240.0.0.1", "::", "::1", "fe80::1%eth0", "fc00::1",
     "ff02::1", "::ffff:10.0.0.1", "2002:7f00:1::", "64:ff9b::7f00:1", "2001:0:1::1"],
)  # fmt: skip
def test_what_is_not_public(address):
    assert not _is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.216.34", "2606:4700::1111"])
def test_what_is_public(address):
    assert _is_public(address)
    assert ipaddress.ip_address(address).is_global


@pytest.mark.parametrize(
    ("host", "allowed", "matches"),
    [
        ("a.example", "*", True),
        ("a.example", "a.example", True),
        ("b.a.example", "a.example", False),
        ("b.a.example", "*.a.example", True),
        ("a.example", "*.a.example", False),
        ("evila.example", "*.a.example", False),
    ],
)
def test_hosts_are_named_or_all_below_one_are(host, allowed, matches):
    assert _matches(host, allowed) is matches


@pytest.mark.parametrize(
    "url",
    ["ftp://photos.test/a", "http://photos.test:8080/a", "http://user@photos.test/a", "http:///a",
     "http://photos.test@other.test/a", "https://photos.test:80000/", "http://other.test/"],
)  # fmt: skip
async def test_other_addresses_are_refused_unasked(site, url):
    (answer,) = await asked_for({"images": [{"url": url}]})
    problem(answer, 422, "fetch_failed")
    assert site.asked == []


@pytest.mark.parametrize("body", [by_url("/a.jpg"), {"url": "http://photos.test/a.jpg"}])
async def test_without_hosts_nothing_is_fetched_and_the_answer_says_so(site, body):
    (answer,) = await asked_for(body, fetch_urls=())
    assert "CAPTION_FETCH_URLS" in problem(answer, 422, "invalid_request")["detail"]
    assert site.asked == []


async def test_what_is_fetched_is_charged_like_a_body_and_given_back(site):
    async with serving(fetch_urls=HOSTS, max_upload_bytes=1000, max_inflight_bytes=1200) as client:
        bytes_held = client.app.state.app_state.metrics.inflight_bytes._value.get
        waiting = asyncio.create_task(client.post("/v1/captions", json=by_url("/silent")))
        await until(lambda: site.asked)
        assert bytes_held() >= 1000
        refused = await client.post("/v1/captions", json=by_url("/a.jpg"))
        problem(refused, 503, "overloaded")
        waiting.cancel()
        await asyncio.wait({waiting})
        assert bytes_held() == 0
        assert captions(await client.post("/v1/captions", content=b"a", headers=RAW)) == ["a"]
