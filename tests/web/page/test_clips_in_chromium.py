"""What a person sees of a clip on the page, in a real Chromium, with the shipped checkpoint."""

import json
import os
import re
import subprocess

import httpx
import numpy as np
import pytest

pytest.importorskip("selenium")
pytest.importorskip("av")
from PIL import Image

from support.chromium import DOG, DONE, MARKS, SHIPPED
from support.clips import animation, sound_alone, video
from support.service_process import Process

pytestmark = MARKS
SHOTS = "#shots button"
CUES = """
  const { track } = document.querySelector("#clip track") ?? {};
  return track?.cues && [...track.cues].map((cue) => [cue.startTime, cue.endTime, cue.text]);
"""
ANSWER_BY_HAND = """
  const asked = window.fetch;
  const answer = new ReadableStream({ start: (controller) => (window.lines = controller) });
  window.fetch = (url, options) =>
    String(url).includes("v1/clips") ? Promise.resolve(new Response(answer)) : asked(url, options);
"""
SAY = "window.lines.enqueue(new TextEncoder().encode(arguments[0]))"
TIME = "return document.getElementById('clip').currentTime"
TAB, ENTER = ("Tab", 9), ("Enter", 13)


def scenes():
    """Give the dog and a drawing of blocks, as pixels of one size."""
    with Image.open(DOG) as dog:
        yield np.asarray(dog.convert("RGB").resize((320, 240)))
    yield np.asarray(Image.fromarray(_blocks()).resize((320, 240)))


def _blocks():
    dice = np.random.default_rng(3)
    return np.kron(dice.integers(0, 255, (6, 8, 3), np.uint8), np.ones((40, 40, 1), np.uint8))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Give a video of two scenes, three seconds each, of a kind that every Chromium plays."""
    path = tmp_path_factory.mktemp("clips") / "two scenes.webm"
    pictures = [each for scene in scenes() for each in [scene] * 30]
    path.write_bytes(video(pictures, kind="webm", codec="libvpx", b="1M"))
    return path


@pytest.fixture(scope="module")
def gif(tmp_path_factory):
    path = tmp_path_factory.mktemp("clips") / "two.gif"
    path.write_bytes(animation(scenes(), duration_ms=2000))
    return path


@pytest.fixture(scope="module")
def answer(service, clip):
    """What the service says of the video to who asks as the page does."""
    return asked(service, clip).json()


def asked(service, path, **query):
    files = {"file": path.read_bytes()}
    told = httpx.post(f"{service.url}/v1/clips", params=query, files=files, timeout=60)
    assert told.status_code == 200
    return told


def choose(browser, *paths):
    browser.one("#files").send_keys("\n".join(map(str, paths)))


def describe(browser, path):
    choose(browser, path)
    browser.wait_for(DONE)
    browser.wait_for("#clip")
    browser.wait_until("document.getElementById('clip').readyState >= 1")


def cues(browser):
    browser.wait_until("document.querySelector('#clip track')?.readyState === 2")
    return browser.execute_script(CUES)


def expected_cues(answer):
    return [
        [pytest.approx(shot["start_s"]), pytest.approx(shot["end_s"]), shot["caption"]]
        for shot in answer["shots"]
    ]


def play(browser):
    """Play without sound, for which no browser asks a person to click first."""
    script = "const clip = document.getElementById('clip'); clip.muted = true; clip.play()"
    browser.execute_script(script)
    browser.wait_until("document.getElementById('clip').currentTime > 0.3")


def active(browser):
    """Give the captions that lie over the video."""
    cues = "[...document.getElementById('clip').textTracks[0].activeCues]"
    return browser.execute_script(f"return {cues}.map(({{ text }}) => text)")


# Videos


def test_a_video_plays_with_its_shots_as_captions(browser, clip, answer):
    describe(browser, clip)
    assert len(answer["shots"]) == 2
    assert cues(browser) == expected_cues(answer)
    track = "const { kind, mode } = document.getElementById('clip').textTracks[0];"
    assert browser.execute_script(f"{track} return [kind, mode]") == ["captions", "showing"]
    assert browser.execute_script("return document.getElementById('clip').controls")
    assert browser.one("#clip-summary").text == answer["summary"]
    assert browser.texts(f"{SHOTS} .text") == [shot["caption"] for shot in answer["shots"]]
    assert browser.texts("#history-list .line") == [answer["summary"]]
    assert re.search(r"320 \W 240 \W 0:06", browser.one("#facts").text)
    assert not browser.one("#photo").is_displayed()
    assert not browser.one("#answer").is_displayed()
    play(browser)
    assert active(browser) == [answer["shots"][0]["caption"]]


def test_shots_are_told_while_the_service_still_looks(browser, clip, answer):
    first, second = (json.dumps(shot) + "\n" for shot in answer["shots"])
    end = {key: value for key, value in answer.items() if key != "shots"}
    captions = [shot["caption"] for shot in answer["shots"]]
    browser.execute_script(ANSWER_BY_HAND)
    choose(browser, clip)
    browser.wait_until("window.lines && document.getElementById('clip').readyState >= 1")
    browser.execute_script(SAY, first + second[:20])
    browser.wait_for(SHOTS)
    assert browser.texts(f"{SHOTS} .text") == captions[:1]
    assert browser.one("#clip-summary").text == "One shot so far"
    assert not browser.one("#clip-copies").is_displayed()
    browser.execute_script(f"document.querySelector('{SHOTS}').focus()")
    browser.execute_script(SAY, second[20:])
    browser.wait_until("document.querySelectorAll('#shots button').length === 2")
    browser.execute_script(SAY, json.dumps(end) + "\n")
    browser.wait_for(DONE)
    assert browser.execute_script(f"return document.activeElement.matches('{SHOTS}')")
    assert browser.texts(f"{SHOTS} .text") == captions
    assert browser.one("#clip-summary").text == answer["summary"]
    assert browser.one("#clip-copies").is_displayed()
    assert cues(browser) == expected_cues(answer)


@pytest.mark.parametrize("last", ['{"problem": {"code": "deadline_exceeded"}}\n', "", '{"start_s"'])
def test_of_an_answer_that_ends_early_the_shots_stay(browser, clip, answer, last):
    browser.execute_script(ANSWER_BY_HAND)
    choose(browser, clip)
    browser.wait_until("window.lines")
    browser.execute_script(SAY, json.dumps(answer["shots"][0]) + "\n" + last)
    browser.wait_for(SHOTS)
    browser.execute_script("window.lines.close()")
    browser.wait_until("!document.getElementById('failure').hidden")
    words = "not describe the clip in time" if "problem" in last else "No answer came"
    assert words in browser.one("#failure-text").text
    assert browser.texts(f"{SHOTS} .text") == [answer["shots"][0]["caption"]]
    assert not browser.one("#clip-copies").is_displayed()


def test_a_shot_is_a_button_that_leads_to_it(browser, clip, answer):
    describe(browser, clip)
    begins_s = [shot["start_s"] for shot in answer["shots"]]
    for n in (1, 0):
        browser.all(SHOTS)[n].click()
        browser.wait_for(f"li:nth-child({n + 1}) > .shot[aria-current=true]")
        assert 0 < browser.execute_script(TIME) - begins_s[n] < 0.05
        assert len(browser.all(f"{SHOTS}[aria-current]")) == 1
        browser.wait_until("document.getElementById('clip').textTracks[0].activeCues.length === 1")
        assert active(browser) == [answer["shots"][n]["caption"]]


def test_the_keyboard_alone_chooses_a_shot(browser, clip, answer):
    describe(browser, clip)
    on_last = "document.activeElement.matches('#shots li:last-child button')"
    for _ in range(40):
        browser.keys(*TAB)
        if browser.execute_script(f"return {on_last}"):
            break
    assert browser.execute_script(f"return {on_last}")
    outline = "return getComputedStyle(document.activeElement).outlineStyle"
    assert browser.execute_script(outline) == "solid"
    browser.keys(*ENTER, text="\r")
    browser.wait_for("li:nth-child(2) > .shot[aria-current=true]")
    assert 0 < browser.execute_script(TIME) - answer["shots"][1]["start_s"] < 0.05


def test_the_track_that_the_service_writes_plays_too_and_is_the_same(browser, service, clip):
    """The ``text/vtt`` answer, as it came, is the source of the track."""
    describe(browser, clip)
    of_the_page = cues(browser)
    written = asked(service, clip, format="vtt")
    assert written.headers["content-type"].startswith("text/vtt")
    replace = """
      const [text, type, done] = arguments;
      const track = document.createElement("track");
      const src = URL.createObjectURL(new Blob([text], { type }));
      Object.assign(track, { kind: "captions", default: true, src });
      track.onload = () => done("loaded");
      track.onerror = () => done("refused");
      document.getElementById("clip").replaceChildren(track);
      track.track.mode = "showing";
    """
    given = (written.text, written.headers["content-type"])
    assert browser.execute_async_script(replace, *given) == "loaded"
    assert cues(browser) == of_the_page
    assert copied(browser, "vtt") == written.text


def copied(browser, form):
    browser.one(f"#clip-answer [data-copy={form}]").click()
    browser.wait_for(f"#clip-answer [data-copy={form}][data-copied=Copied]")
    return browser.execute_async_script("navigator.clipboard.readText().then(arguments[0])")


def test_it_is_copied_as_text_as_json_and_as_curl(browser, service, clip, answer):
    describe(browser, clip)
    assert copied(browser, "text") == answer["summary"]
    told = json.loads(copied(browser, "json"))
    assert [shot["caption"] for shot in told["shots"]] == browser.texts(f"{SHOTS} .text")
    command = copied(browser, "curl")
    done = subprocess.run(
        ["/bin/bash", "-c", command], cwd=clip.parent, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["summary"] == answer["summary"]


def test_a_video_that_the_browser_cannot_play_has_its_shots_all_the_same(browser, clip, answer):
    """As HEVC in most browsers."""
    refuse = """
      const real = URL.createObjectURL;
      URL.createObjectURL = () => real(new Blob(["no video"], { type: "video/mp4" }));
    """
    browser.execute_script(refuse)
    choose(browser, clip)
    browser.wait_for(DONE)
    browser.wait_for("#unseen")
    assert "cannot play" in browser.one("#unseen").text
    browser.wait_for("#shots .shot .text", 2)
    assert browser.all(SHOTS) == []  # there is nothing to seek in
    assert browser.texts("#shots .text") == [shot["caption"] for shot in answer["shots"]]
    assert browser.violations() == []


# Images


def test_a_gif_that_moves_is_an_image_with_its_shots(browser, service, gif):
    answer = asked(service, gif).json()
    choose(browser, gif)
    browser.wait_for(DONE)
    browser.wait_for("#photo")
    assert not browser.one("#clip").is_displayed()
    assert len(answer["shots"]) == 2
    assert browser.texts("#shots .text") == [shot["caption"] for shot in answer["shots"]]
    times = [text.split()[::2] for text in browser.texts("#shots .when")]
    assert times == [["0:00", "0:02"], ["0:02", "0:04"]]
    assert browser.all(SHOTS) == []
    assert browser.one("#photo").get_attribute("alt") == answer["summary"]
    assert browser.violations() == []


def moving(folder, kind):
    path = folder / f"moving.{kind.lower()}"
    first, second = (Image.fromarray(each) for each in scenes())
    first.save(path, kind, save_all=True, append_images=[second], duration=2000)
    return path


def still(folder, kind):
    path = folder / f"still.{kind.lower()}"
    Image.fromarray(next(scenes())).save(path, kind)
    return path


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "AVIF"])
def test_an_image_is_a_clip_if_it_moves_and_a_photo_if_not(browser, tmp_path, kind):
    choose(browser, moving(tmp_path, kind))
    browser.wait_for(DONE)
    assert browser.one("#clip-answer").is_displayed()
    assert len(browser.texts("#shots .text")) == 2
    choose(browser, still(tmp_path, kind))
    browser.wait_for(DONE, 2)
    assert browser.one("#answer").is_displayed()
    assert not browser.one("#clip-answer").is_displayed()
    browser.wait_for("#look")


def test_a_clip_and_photos_are_gone_through_and_cleared(browser, clip, answer):
    describe(browser, clip)
    choose(browser, DOG)
    browser.wait_for(DONE, 2)
    browser.wait_for("#photo")
    assert (
        browser.execute_script("return document.getElementById('clip').hasAttribute('src')")
        is False
    )
    assert browser.one("#answer").is_displayed()
    browser.all("#history-list button")[1].click()
    browser.wait_for("#clip")
    assert cues(browser) == expected_cues(answer)
    play(browser)
    browser.one("#clear").click()
    assert browser.execute_script("return document.getElementById('clip').paused")
    browser.wait_for("#sample")


# What goes wrong


def failure(browser):
    browser.wait_for("#failure")
    told = browser.one("#failure-text").text
    assert browser.one("#failure-title").text == "No sentence for this clip"
    assert browser.texts("#history-list .line")[0] == "No sentence"
    assert not re.search(r"[a-z]_[a-z]|undefined|null|NaN|Error|\b[45]\d\d\b", told)
    return told


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("cut.webm", b"\x1a\x45\xdf\xa3" + bytes(99), "cannot read this clip"),
        ("sound.mp4", sound_alone(), "sound and no pictures"),
        ("old.avi", b"RIFF\0\0\0\0AVI LIST", "save it as MP4"),
        ("empty.mp4", b"", "Choose the clip itself"),
    ],
)
def test_what_is_no_clip_is_told_in_plain_words(browser, tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    choose(browser, path)
    assert words in failure(browser)
    assert browser.violations() == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"MAX_CLIP_S": 2}, "The clip is longer than 2 s: send a part of it."),
        ({"MAX_CLIP_BYTES": 1000, "MAX_UPLOAD_BYTES": 1000}, "Send a smaller copy."),
    ],
)
def test_a_clip_that_is_too_much_is_told(one_browser, tmp_path, clip, settings, words):
    with Process(SHIPPED, tmp_path, **settings) as service:
        service.wait_for("/readyz", 200)
        one_browser.visit(service.url)
        choose(one_browser, clip)
        assert words in failure(one_browser)
        one_browser.assert_nothing_foreign(service.url)


def test_without_clips_a_video_is_refused_and_a_gif_is_a_photo(one_browser, tmp_path, clip, gif):
    with Process(SHIPPED, tmp_path, CLIPS="false") as service:
        service.wait_for("/readyz", 200)
        one_browser.visit(service.url)
        assert one_browser.one("#choose").text == "Choose photos"
        choose(one_browser, clip)
        assert failure(one_browser).startswith("This service takes no clips.")
        choose(one_browser, gif)
        one_browser.wait_for(DONE)
        assert one_browser.one("#answer").is_displayed()
        one_browser.wait_for("#look")
        one_browser.assert_nothing_foreign(service.url)


def test_without_the_extra_a_video_is_refused_with_its_name(
    one_browser, tmp_path, clip, gif, monkeypatch
):
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['av'] = None\n")
    paths = filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    with Process(SHIPPED, tmp_path) as service:
        service.wait_for("/readyz", 200)
        one_browser.visit(service.url)
        choose(one_browser, clip)
        assert "caption-service[video]" in failure(one_browser)
        choose(one_browser, gif)
        one_browser.wait_for(DONE)
        assert one_browser.one("#clip-answer").is_displayed()
        one_browser.assert_nothing_foreign(service.url)


# For everybody


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [320, 1280])
def test_a_clip_fits_every_width_in_both_colours_and_axe_finds_nothing(browser, clip, width, dark):
    browser.look(dark=dark, width=width)
    describe(browser, clip)
    browser.all(SHOTS)[1].click()
    browser.wait_for("li:nth-child(2) > .shot[aria-current=true]")
    browser.wait_until(  # a colour on its way is neither
        "document.getAnimations().every((each) => each.playState === 'finished')"
    )
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert browser.violations() == []


def test_what_was_said_of_a_clip_is_said_to_who_listens(browser, clip, answer):
    describe(browser, clip)
    said = browser.one("#announce").get_attribute("textContent")
    assert said.startswith(f"{clip.name}: {answer['summary']}")
