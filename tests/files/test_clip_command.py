"""``caption --format``: clips in files, and folders of frames."""

import json

import httpx
import pytest

from app import loading
from app.cli import main
from support.clips import BLUE, RED, animation, plain, sound_alone, video
from support.colours import COLOURS, ColourCaptioner

CAR, _, DOGS, _ = COLOURS
VTT = f"WEBVTT\n\n00:00:00.000 --> 00:00:02.000\n{CAR}\n\n00:00:02.000 --> 00:00:04.000\n{DOGS}\n"


@pytest.fixture(autouse=True)
def captioner(monkeypatch):
    monkeypatch.setattr(loading, "load_captioner", lambda _: ColourCaptioner())


@pytest.fixture
def clip(tmp_path):
    file = tmp_path / "clip.mp4"
    file.write_bytes(video([plain(RED)] * 20 + [plain(BLUE)] * 20))
    return str(file)


def test_a_track_is_printed(clip, capsys):
    assert main(["caption", clip, "--format", "vtt"]) == 0
    assert capsys.readouterr().out == VTT


def test_json_has_the_shots_and_the_summary(clip, capsys):
    assert main(["caption", clip, "--format", "json", "--n-best", "2"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["clip"], said["duration_s"]) == (clip, 4.0)
    assert [(each["start_s"], each["caption"]) for each in said["shots"]] == [(0, CAR), (2, DOGS)]
    assert [len(each["candidates"]) for each in said["shots"]] == [2, 2]
    assert said["summary"] in {CAR, DOGS}


def test_a_folder_is_a_series_of_frames(tmp_path, capsys):
    for number, colour in enumerate([RED] * 4 + [BLUE] * 4):
        (tmp_path / f"{number:03}.png").write_bytes(animation([plain(colour)], "PNG"))
    assert main(["caption", str(tmp_path), "--format", "vtt"]) == 0
    assert capsys.readouterr().out == VTT


@pytest.mark.parametrize("form", ["vtt", "json"])
def test_a_clip_that_is_not_described_to_its_end_says_so(tmp_path, capsys, monkeypatch, form):
    monkeypatch.setenv("CAPTION_MAX_CLIP_FRAMES", "4")
    file = tmp_path / "a.gif"
    file.write_bytes(
        animation([plain((n, 0, 0)) for n in range(1, 200, 10)], "GIF", duration_ms=500)
    )
    assert main(["caption", str(file), "--format", form]) == 0
    out, err = capsys.readouterr()
    assert "more frames" in err
    assert form == "vtt" or "more frames" in json.loads(out)["warning"]


def test_an_image_that_does_not_move_is_one_shot(tmp_path, capsys):
    file = tmp_path / "a.gif"
    file.write_bytes(animation([plain(RED)]))
    assert main(["caption", str(file), "--format", "srt"]) == 0
    assert capsys.readouterr().out == f"1\n00:00:00,000 --> 00:00:01,000\n{CAR}\n"


@pytest.mark.parametrize(
    ("data", "told"),
    [(sound_alone(), "sound and no pictures"), (b"#EXTM3U", "playlist"), (None, "No such file")],
)
def test_what_is_no_clip_is_told(tmp_path, capsys, data, told):
    file = tmp_path / "clip.mp4"
    if data is not None:
        file.write_bytes(data)
    assert main(["caption", str(file), "--format", "vtt"]) == 1
    assert told in capsys.readouterr().err


def test_only_one_clip_at_a_time(clip, capsys):
    assert main(["caption", clip, clip, "--format", "vtt"]) == 1
    assert "one" in capsys.readouterr().err


def test_a_service_can_be_asked(clip, capsys, monkeypatch):
    asked = {}

    def post(url, **options):
        asked.update(options, url=url)
        return httpx.Response(200, text=VTT)

    monkeypatch.setattr(httpx, "post", post)
    monkeypatch.setenv("CAPTION_API_KEYS", "secret")
    assert main(["caption", clip, "--format", "vtt", "--url", "http://here/"]) == 0
    assert capsys.readouterr().out == VTT
    assert asked["url"] == "http://here/v1/clips"
    assert asked["headers"]["x-api-key"] == "secret"
    assert asked["params"]["frames"] is False


def test_what_a_service_refuses_is_told_in_its_words(clip, capsys, monkeypatch):
    refused = httpx.Response(422, json={"detail": "the clip is longer than 600 s"})
    monkeypatch.setattr(httpx, "post", lambda *_, **__: refused)
    assert main(["caption", clip, "--format", "vtt", "--url", "http://here"]) == 1
    assert "longer than 600 s" in capsys.readouterr().err
