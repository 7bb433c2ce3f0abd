"""``POST /v1/clips``: clips in, described shots out."""

import asyncio
import json

import pytest

from app.web.schemas import ClipResponse
from support.api import RAW, as_files, problem
from support.clips import BLUE, GREEN, RED, WHITE, animation, plain, sound_alone, turned, video
from support.colours import COLOURS, ColourCaptioner
from support.fake import serving, until
from support.photos import photo

CAR, FIELD, DOGS, SNOW = COLOURS
TWO_SHOTS = [plain(RED)] * 20 + [plain(BLUE)] * 20
RAW_CLIP = {"content-type": "application/octet-stream"}


@pytest.fixture(scope="module")
def mp4():
    return video(TWO_SHOTS)


async def ask(client, clip, headers=RAW_CLIP, **options):
    answer = await client.post("/v1/clips", params=options, content=clip, headers=headers)
    if answer.status_code == 200 and answer.headers["content-type"] == "application/json":
        ClipResponse.model_validate_json(answer.content)
    return answer


def told(answer):
    assert answer.status_code == 200, answer.text
    return [(each["start_s"], each["end_s"], each["caption"]) for each in answer.json()["shots"]]


async def test_a_video_has_its_shots_described(mp4):
    async with serving(ColourCaptioner()) as client:
        answer = await ask(client, mp4, n_best=2)
        metrics = (await client.get("/metrics")).text
    assert told(answer) == [(0.0, 2.0, CAR), (2.0, 4.0, DOGS)]
    body = answer.json()
    assert body["duration_s"] == 4.0
    assert body["model"] == {"name": "tiny", "version": "1"}
    assert body["request_id"] == answer.headers["x-request-id"]
    assert [each["keyframe_s"] for each in body["shots"]] == [1.0, 3.0]
    assert [len(each["candidates"]) for each in body["shots"]] == [2, 2]
    assert "warning" not in body
    assert 'route="/v1/clips"' in metrics


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "AVIF"])
async def test_an_image_that_moves_is_a_clip(kind):
    clip = animation([plain(RED), plain(BLUE), plain(GREEN)], kind, duration_ms=[2000, 2000, 1500])
    async with serving(ColourCaptioner()) as client:
        answer = await ask(client, clip)
    assert told(answer) == [(0.0, 2.0, CAR), (2.0, 4.0, DOGS), (4.0, 5.5, FIELD)]


@pytest.mark.parametrize(
    ("kind", "codec"),
    [
        ("mov", "libx264"),
        ("mp4", "libx265"),
        ("webm", "libvpx"),
        ("webm", "libvpx-vp9"),
        ("matroska", "libx264"),
        ("mp4", "mpeg4"),
    ],
)
async def test_videos_of_phones_browsers_and_recorders_are_read(kind, codec):
    async with serving(ColourCaptioner()) as client:
        answer = await ask(client, video(TWO_SHOTS, kind=kind, codec=codec, sound=kind == "webm"))
    assert told(answer) == [(0.0, 2.0, CAR), (2.0, 4.0, DOGS)]


async def test_a_clip_of_a_variable_frame_rate_keeps_its_times():
    pictures = [plain(RED)] * 3 + [plain(GREEN)] * 3
    async with serving(ColourCaptioner()) as client:
        answer = await ask(client, video(pictures, times=[0, 3, 31, 55, 57, 90]))
    assert [(round(a, 1), said) for a, _, said in told(answer)] == [(0.0, CAR), (5.5, FIELD)]
    assert answer.json()["duration_s"] > 9


async def test_a_still_image_says_exactly_what_it_says_as_a_photo(checkpoint):
    async with serving(checkpoint=checkpoint, device="cpu", inference_threads=1) as client:
        await until(lambda: client.app.state.app_state.health.readyz().ok)
        for kind in ("PNG", "JPEG", "GIF", "WEBP"):
            image = photo(3, kind=kind)
            alone = await client.post("/v1/captions?n_best=3", content=image, headers=RAW)
            (result,) = alone.json()["results"]
            answer = await ask(client, image, n_best=3)
            (shot,) = answer.json()["shots"]
            assert (shot["start_s"], shot["end_s"], shot["keyframe_s"]) == (0, 0, 0)
            for member in ("caption", "log_prob", "confidence", "candidates"):
                assert shot[member] == result[member], (kind, member)
            assert answer.json()["summary"] == result["caption"]


async def test_images_in_order_are_a_clip():
    colours = [RED] * 4 + [BLUE] * 4
    files = [
        ("file", (f"{n}.png", picture(colour), "image/png")) for n, colour in enumerate(colours)
    ]
    async with serving(ColourCaptioner()) as client:
        answer = await client.post("/v1/clips", data={"frames": "true", "fps": "1"}, files=files)
        refused = await client.post("/v1/clips", files=files)
    assert told(answer) == [(0.0, 4.0, CAR), (4.0, 8.0, DOGS)]
    assert "frames=true" in problem(refused, 422, "invalid_request")["detail"]


def picture(colour):
    return animation([plain(colour)], "PNG")


async def test_a_bad_image_among_frames_is_told():
    files = [("file", ("a.png", picture(RED))), ("file", ("b.png", picture(RED)[:60]))]
    async with serving(ColourCaptioner()) as client:
        answer = await client.post("/v1/clips?frames=true", files=files)
    problem(answer, 422, "undecodable_image")


async def test_a_form_a_raw_body_and_options_in_either(mp4):
    async with serving(ColourCaptioner()) as client:
        raw = await ask(client, mp4, n_best=2)
        form = await client.post("/v1/clips", data={"n_best": "2"}, files={"clip": ("a.mp4", mp4)})
        video_ = await ask(client, mp4, {"content-type": "video/mp4"}, n_best=2)
    assert raw.json()["shots"] == form.json()["shots"] == video_.json()["shots"]


async def test_neighbours_that_say_the_same_are_one_shot():
    dark_red = (140, 10, 60)
    pictures = [plain(RED)] * 20 + [plain(dark_red)] * 20 + [plain(BLUE)] * 20
    async with serving(ColourCaptioner()) as client:
        answer = await ask(client, video(pictures))
    assert told(answer) == [(0.0, 4.0, CAR), (4.0, 6.0, DOGS)]


async def test_the_summary_is_what_is_told_longest():
    pictures = [plain(RED)] * 20 + [plain(BLUE)] * 30 + [plain(RED)] * 20
    async with serving(ColourCaptioner()) as client:
        answer = await ask(client, video(pictures))
    assert [said for _, _, said in told(answer)] == [CAR, DOGS, CAR]
    assert answer.json()["summary"] == CAR


async def test_what_is_not_sure_is_withheld(mp4):
    async with serving(ColourCaptioner()) as client:
        answer = await ask(client, mp4, min_confidence=0.9)
        vtt = await ask(client, mp4, min_confidence=0.9, format="vtt")
    assert [each["caption"] for each in answer.json()["shots"]] == [None, None]
    assert [each["withheld"] for each in answer.json()["shots"]] == ["low_confidence"] * 2
    assert answer.json()["summary"] is None
    assert vtt.text == "WEBVTT\n"


VTT = f"""WEBVTT

00:00:00.000 --> 00:00:02.000
{CAR}

00:00:02.000 --> 00:00:04.000
{DOGS}
"""
SRT = f"""1
00:00:00,000 --> 00:00:02,000
{CAR}

2
00:00:02,000 --> 00:00:04,000
{DOGS}
"""


@pytest.mark.parametrize(
    ("accept", "media_type", "text"),
    [
        ("text/vtt", "text/vtt; charset=utf-8", VTT),
        ("application/x-subrip", "application/x-subrip", SRT),
        ("application/json;q=0.5, text/vtt", "text/vtt; charset=utf-8", VTT),
    ],
)
async def test_accept_asks_for_a_track(mp4, accept, media_type, text):
    async with serving(ColourCaptioner()) as client:
        answer = await ask(client, mp4, {**RAW_CLIP, "accept": accept})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == media_type
    assert answer.text == text


async def test_lines_come_as_shots_are_ready(mp4):
    async with serving(ColourCaptioner()) as client:
        answer = await ask(client, mp4, {**RAW_CLIP, "accept": "application/x-ndjson"})
        whole = await ask(client, mp4)
    assert answer.headers["content-type"] == "application/x-ndjson"
    *shots, end = map(json.loads, answer.text.splitlines())
    assert shots == whole.json()["shots"]
    assert end["summary"] == whole.json()["summary"]
    assert end["duration_s"] == 4.0


async def test_a_clip_at_fault_has_a_status_in_every_format():
    async with serving(ColourCaptioner()) as client:
        for form in ("json", "ndjson", "vtt", "srt"):
            answer = await ask(client, sound_alone(), format=form)
            detail = problem(answer, 422, "undecodable_image")["detail"]
            assert detail == "the file has sound and no pictures: send a clip with a video track"


async def test_a_shot_is_described_from_several_of_its_frames_and_not_its_ends():
    seen = []
    captioner = ColourCaptioner()
    said = captioner._said
    captioner._said = lambda shot: seen.append(shot) or said(shot)
    async with serving(captioner) as client:
        body = (await ask(client, video([plain(RED)] * 40 + [plain(GREEN)] * 40))).json()
    assert [each["caption"] for each in body["shots"]] == [CAR, FIELD]
    assert [shot.shape for shot in seen] == [(6, 64, 64, 3)] * 2  # of eight, two a second


async def test_what_goes_wrong_later_is_the_last_line():
    clip = video([plain(RED)] * 20 + [plain(GREEN)] * 20 + [plain(BLUE)] * 20)
    captioner = ColourCaptioner()
    said = captioner._said

    def fails(square):
        if square.reshape(-1, 3).mean(0)[2] > 100:  # blue
            raise RuntimeError("secret at 0x7f00deadbeef")
        return said(square)

    captioner._said = fails
    async with serving(captioner) as client:
        answer = await ask(client, clip, format="ndjson")
        metrics = (await client.get("/metrics")).text
    first, last = map(json.loads, answer.text.splitlines())
    assert first["caption"] == CAR
    assert last["problem"]["code"] == "internal_error"
    assert "0x" not in answer.text
    assert 'outcome="internal_error",route="/v1/clips"' in metrics


@pytest.mark.parametrize(
    ("clip", "status", "code", "says"),
    [
        (b"", 422, "invalid_request", "bytes of a clip"),
        (b"#EXTM3U\nhttp://127.0.0.1/a.ts", 415, "unsupported_image", "playlist"),
        (b"%PDF-1.7", 415, "unsupported_image", "MP4"),
        (b"RIFF\0\0\0\0AVI LIST", 415, "unsupported_image", "AVI"),
        (b"\0\0\0\x18ftypisom" + bytes(100), 422, "undecodable_image", "damaged"),
        (b"\x1a\x45\xdf\xa3" + bytes(100), 422, "undecodable_image", "damaged"),
        (b"GIF89a", 422, "undecodable_image", "damaged"),
    ],
)
async def test_what_is_no_clip_is_refused_with_what_would_work(clip, status, code, says):
    async with serving(ColourCaptioner()) as client:
        answer = await ask(client, clip)
    assert says in problem(answer, status, code)["detail"]


@pytest.mark.parametrize(
    ("settings", "status", "code"),
    [
        ({"max_clip_s": 3}, 422, "clip_too_long"),
        ({"max_clip_bytes": 1000, "max_upload_bytes": 1000}, 413, "body_too_large"),
        ({"max_pixels": 1000}, 413, "too_many_pixels"),
        ({"max_clip_pixels_per_s": 10_000}, 422, "too_costly"),
        ({"clip_cpu_s": 0.001}, 422, "too_costly"),
    ],
)
async def test_a_clip_has_limits(mp4, settings, status, code):
    async with serving(ColourCaptioner(), **settings) as client:
        answer = await ask(client, mp4)
    problem(answer, status, code)


async def test_frames_are_spread_over_a_clip_that_has_too_many(mp4):
    captioner = ColourCaptioner()
    async with serving(captioner, max_clip_frames=8) as client:
        answer = await ask(client, mp4, max_frames=4, fps=10)
        too_many = await ask(client, mp4, max_frames=9)
    assert told(answer) == [(0.0, 2.0, CAR), (2.0, 4.0, DOGS)]
    assert "8" in problem(too_many, 422, "invalid_request")["detail"]


async def test_a_clip_that_does_not_say_how_long_it_is_ends_early_with_a_warning():
    clip = animation([plain((n, 0, 0)) for n in range(1, 200, 10)], duration_ms=500)
    async with serving(ColourCaptioner()) as client:
        answer = await ask(client, clip, max_frames=4)
    assert answer.json()["duration_s"] == 2.0
    assert "more frames" in answer.json()["warning"]


@pytest.mark.parametrize(
    "query", ["fps=0", "fps=nan", "scene_threshold=2", "format=avi", "n_best=9"]
)
async def test_options_that_mean_nothing_are_refused(mp4, query):
    async with serving(ColourCaptioner()) as client:
        answer = await client.post(f"/v1/clips?{query}", content=mp4, headers=RAW_CLIP)
    problem(answer, 422, "invalid_request")


@pytest.mark.parametrize(
    "media_type", ["application/json", "application/x-www-form-urlencoded", "multipart/form-data"]
)
async def test_a_clip_is_told_by_its_bytes_whatever_is_said_of_them(mp4, media_type):
    """`curl --data-binary` says urlencoded."""
    moving = animation([plain(RED)] * 2 + [plain(BLUE)] * 2, "GIF")
    async with serving(ColourCaptioner()) as client:
        for clip in (mp4, moving):
            answer = await ask(client, clip, {"content-type": media_type})
            assert answer.status_code == 200, answer.text


async def test_json_and_urlencoded_forms_are_refused_with_what_would_work():
    async with serving(ColourCaptioner()) as client:
        for body in ({"json": {"images": []}}, {"data": {"file": "abc"}}):
            answer = await client.post("/v1/clips", **body)
            assert "multipart" in problem(answer, 415, "unsupported_media_type")["detail"]


async def test_clips_can_be_switched_off(mp4):
    async with serving(ColourCaptioner(), clips=False) as client:
        answer = await ask(client, mp4)
        assert "/v1/clips" not in (await client.get("/openapi.json")).json()["paths"]
    problem(answer, 404, "not_found")


async def test_a_clip_needs_a_key_where_photos_do(mp4):
    async with serving(ColourCaptioner(), api_keys=["secret"]) as client:
        problem(await ask(client, mp4), 401, "unauthorized")
        answer = await ask(client, mp4, {**RAW_CLIP, "x-api-key": "secret"})
    assert len(told(answer)) == 2


@pytest.fixture(scope="module")
def long_mp4():
    """Its first shot is captioned while most of it is still to be read."""
    return video(TWO_SHOTS * 4)


async def test_a_clip_that_takes_too_long_is_given_up(mp4, long_mp4):
    captioner = ColourCaptioner()
    captioner.gate.clear()
    async with serving(captioner, clip_deadline_s=1.5) as client:
        answer = await ask(client, long_mp4)
        problem(answer, 504, "deadline_exceeded")
        clips = client.app.state.app_state.clips
        await until(lambda: not clips._processes._busy)
        assert client.app.state.app_state.service._held == 0
        captioner.gate.set()
        assert len(told(await ask(client, mp4))) == 2


async def test_who_leaves_is_worked_for_no_more(mp4, long_mp4):
    captioner = ColourCaptioner()
    captioner.gate.clear()
    async with serving(captioner) as client:
        asking = asyncio.create_task(ask(client, long_mp4))
        await until(captioner.entered.is_set)
        asking.cancel()
        await asyncio.wait({asking})
        captioner.gate.set()
        clips, service = client.app.state.app_state.clips, client.app.state.app_state.service
        await until(lambda: not clips._processes._busy and not service._held)
        await until(lambda: clips._turns._free == 1)
        assert service.depth == 0
        assert len(told(await ask(client, mp4))) == 2


async def test_photos_go_on_beside_a_clip():
    """A clip has a few frames in the queue, however long it is."""
    captioner = ColourCaptioner()
    long = video([plain(RED)] * 1000)
    async with serving(captioner) as client:
        asking = asyncio.create_task(ask(client, long, fps=10))
        depths = []
        while not asking.done():
            depths.append(client.app.state.app_state.service.depth)
            answer = await client.post("/v1/captions", files=as_files(picture(BLUE)))
            assert answer.json()["results"][0]["caption"] == DOGS
        assert told(await asking) == [(0.0, 100.0, CAR)]
    assert len(depths) > 3
    assert max(depths) <= 4


@pytest.mark.parametrize("degrees", [90, 180, 270])
async def test_a_phone_that_was_turned_is_turned_back(degrees):
    seen = []
    captioner = ColourCaptioner()
    said = captioner._said
    captioner._said = lambda square: seen.append(square) or said(square)
    two = plain(RED)
    two[:24] = WHITE  # above
    async with serving(captioner) as client:
        await ask(client, turned(video([two] * 10), degrees))
    ((square, *_),) = seen  # the frames of a shot
    side = {90: square[32, 56], 180: square[56, 32], 270: square[32, 8]}[degrees]
    assert side.min() > 200


async def test_without_the_extra_videos_are_refused_with_its_name(mp4, monkeypatch, tmp_path):
    """The process that reads clips finds no PyAV."""
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['av'] = None\n")
    monkeypatch.syspath_prepend(tmp_path)
    async with serving(ColourCaptioner()) as client:
        answer = await ask(client, mp4)
        gif = await ask(client, animation([plain(RED), plain(BLUE)], duration_ms=2000))
    assert "caption-service[video]" in problem(answer, 415, "unsupported_image")["detail"]
    assert len(told(gif)) == 2
