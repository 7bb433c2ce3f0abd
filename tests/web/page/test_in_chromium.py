"""Each thing that a person does on the page, in a real Chromium, with the shipped checkpoint."""

import json
import math
import re
import subprocess
import time
from urllib.parse import unquote

import httpx
import pytest

pytest.importorskip("selenium")
from PIL import Image

from support.chromium import DOG, DONE, MARKS, SHIPPED
from support.photos import photo
from support.service_process import Process

pytestmark = MARKS
WORDS = "#sentence button"
CHOSEN = "#candidates [aria-pressed=true] .text"
TAB, ENTER, RIGHT, END = ("Tab", 9), ("Enter", 13), ("ArrowRight", 39), ("End", 35)


@pytest.fixture
def photos(tmp_path):
    """Give three photos, the dog among them; one has a name that shells and curl take apart."""
    names = ("dog.jpg", 'it\'s; a "dog", $HOME.jpg', "blocks.png")
    for name in names[:2]:
        (tmp_path / name).write_bytes(DOG.read_bytes())
    (tmp_path / names[2]).write_bytes(photo())
    return [tmp_path / name for name in names]


@pytest.fixture(scope="module")
def answer(service):
    """What the service says of the dog to who asks as the page does."""
    query = {"n_best": 3, "attention": True}
    files = {"image": DOG.read_bytes()}
    told = httpx.post(f"{service.url}/v1/captions", params=query, files=files, timeout=60)
    return told.json()["results"][0]


def choose(browser, *paths):
    browser.one("#files").send_keys("\n".join(map(str, paths)))


def caption_dog(browser):
    choose(browser, DOG)
    browser.wait_for(DONE)


def clipboard(browser):
    return browser.execute_async_script(
        "navigator.clipboard.readText().then(arguments[0], (error) => arguments[0](String(error)))"
    )


def copied(browser, form):
    browser.one(f"[data-copy={form}]").click()
    browser.wait_for(f"[data-copy={form}][data-copied=Copied]")
    return clipboard(browser)


# How photos come


def test_several_photos_are_chosen_and_each_gets_its_sentence(browser, photos, answer):
    choose(browser, *photos)
    browser.wait_for(DONE, 3)
    lines = browser.texts("#history-list .line")
    assert lines[:2] == [answer["caption"]] * 2
    assert lines[2] != lines[0]
    assert [each.partition(" · ")[0] for each in browser.texts("#history-list .sub")] == [
        path.name for path in photos
    ]
    assert browser.texts(WORDS) == answer["caption"].split()
    assert browser.one("#photo").get_attribute("alt") == answer["caption"]


def test_photos_are_dropped_anywhere(browser, photos, answer):
    data = {"items": [], "files": [str(path) for path in photos[:2]], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver"):
        place = {"type": kind, "x": 900, "y": 700, "data": data}
        browser.execute_cdp_cmd("Input.dispatchDragEvent", place)
    browser.wait_for("#dropping.on")
    browser.execute_cdp_cmd("Input.dispatchDragEvent", {**place, "type": "drop"})
    browser.wait_for(DONE, 2)
    browser.wait_for("#dropping.on", 0)
    assert browser.texts("#history-list .line") == [answer["caption"]] * 2


def test_a_folder_that_is_dropped_is_the_photos_in_it(browser, tmp_path):
    (tmp_path / "album/deeper").mkdir(parents=True)
    for name, content in {
        "album/a.jpg": DOG.read_bytes(),
        "album/deeper/b.png": photo(),
        "album/notes.txt": b"no photo",
    }.items():
        (tmp_path / name).write_bytes(content)
    data = {"items": [], "files": [str(tmp_path / "album")], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        place = {"type": kind, "x": 300, "y": 300, "data": data}
        browser.execute_cdp_cmd("Input.dispatchDragEvent", place)
    browser.wait_for(DONE, 2)
    names = [text.partition(" · ")[0] for text in browser.texts("#history-list .sub")]
    assert sorted(names) == ["a.jpg", "b.png"]


def test_a_photo_is_pasted(browser):
    copy = """
      const done = arguments[0];
      (async () => {
        const picture = await createImageBitmap(await (await fetch("page/dog.jpg")).blob());
        const canvas = new OffscreenCanvas(picture.width, picture.height);
        canvas.getContext("2d").drawImage(picture, 0, 0);
        const blob = await canvas.convertToBlob({ type: "image/png" });
        await navigator.clipboard.write([new ClipboardItem({ "image/png": blob })]);
      })().then(() => done("copied"), (error) => done(String(error)));
    """
    assert browser.execute_async_script(copy) == "copied"
    browser.keys("v", 86, modifiers=2, commands=["paste"])
    browser.wait_for(DONE)
    assert "dog" in browser.one("#history-list .line").text


def test_text_that_is_pasted_is_told_from_a_photo(browser):
    browser.execute_async_script("navigator.clipboard.writeText('dog').then(arguments[0])")
    browser.keys("v", 86, modifiers=2, commands=["paste"])
    browser.wait_for("#intake-problem")
    assert "Save the photo first" in browser.one("#intake-problem").text


def test_several_photos_are_taken_with_the_camera(browser):
    browser.one("#photograph").click()
    browser.wait_for("#shoot:enabled")
    assert browser.violations() == []
    for count in (1, 2):
        browser.one("#shoot").click()
        browser.wait_until(
            f"document.getElementById('camera-count').textContent === '{count} taken'"
        )
    browser.one("#camera-close").click()
    browser.wait_for(DONE, 2)
    assert re.fullmatch(r"photo-[\d-]+\.jpg", browser.one("#filename").text)
    assert browser.execute_script("return document.getElementById('camera-view').srcObject") is None


def test_the_drawing_is_there_for_who_has_no_photo(browser, answer):
    browser.one("#sample").click()
    browser.wait_for(DONE)
    assert browser.texts("#history-list .line") == [answer["caption"]]


def test_photos_go_out_as_they_are(browser, service, tmp_path):
    large = tmp_path / "large.png"
    Image.frombytes("RGB", (3000, 2000), bytes(18_000_000)).save(large)
    spy = "window.sent = []; const real = fetch; window.fetch = (...given) => {"
    spy += "window.sent.push(given[1]?.body?.get?.('image')?.size); return real(...given); }"
    browser.execute_script(spy)
    choose(browser, large)
    browser.wait_for(DONE)
    assert large.stat().st_size in browser.execute_script("return window.sent")
    assert re.search(r"3000 \W 2000", browser.one("#facts").text)


def test_a_photo_that_the_browser_cannot_show_gets_its_sentence_all_the_same(browser, answer):
    """As TIFF or HEIC in most browsers, once the service reads them."""
    refuse = """
      const real = URL.createObjectURL;
      URL.createObjectURL = () => real(new Blob(["no picture"], { type: "image/tiff" }));
    """
    browser.execute_script(refuse)
    caption_dog(browser)
    browser.wait_for("#unseen")
    assert browser.texts(WORDS) == answer["caption"].split()
    browser.execute_script("arguments[0].focus()", browser.all(WORDS)[2])
    browser.wait_for("#heat.on")
    assert browser.violations() == []


# What is told of a photo


def heat(browser):
    """Give the canvas over the photo: is it shown, and where is it brightest, in shares."""
    browser.wait_for("#heat.on")
    return browser.execute_script(
        """
        const canvas = document.getElementById("heat");
        const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        let best = 0;
        for (let n = 0; n < data.length; n += 4) if (data[n] > data[best]) best = n;
        const across = (best / 4) % canvas.width;
        return [across / canvas.width, Math.floor(best / 4 / canvas.width) / canvas.height];
        """
    )


def peak(rows):
    """Give the middle of the region that was looked at most, in shares of the photo."""
    places = [(r, c) for r in range(len(rows)) for c in range(len(rows[0]))]
    r, c = max(places, key=lambda place: rows[place[0]][place[1]])
    return (c + 0.5) / len(rows[0]), (r + 0.5) / len(rows)


@pytest.mark.parametrize("by", ["pointer", "focus"])
def test_a_word_shows_where_the_network_looked_and_the_share_of_language(browser, answer, by):
    from selenium.webdriver import ActionChains  # noqa: PLC0415 - where there is selenium

    caption_dog(browser)
    assert browser.all("#heat.on") == []
    words = answer["candidates"][0]["words"]
    place = max(range(len(words)), key=lambda n: max(map(max, words[n]["attention"])))
    word, button = words[place], browser.all(WORDS)[place]
    if by == "pointer":
        ActionChains(browser).move_to_element(button).perform()
    else:
        browser.execute_script("arguments[0].focus()", button)
    across, down = heat(browser)
    expected = peak(word["attention"])
    assert abs(across - expected[0]) < 0.15
    assert abs(down - expected[1]) < 0.15
    language = 100 * word["sentinel"]
    told = float(re.search(r"([\d.]+)% from language", browser.one("#look").text)[1])
    assert abs(told - language) < 1
    assert f"“{word['text']}” {100 * math.exp(word['log_prob']):.0f}%" in browser.one("#look").text
    photo_box, heat_box = browser.one("#photo").rect, browser.one("#heat").rect
    for side in ("x", "y", "width", "height"):
        assert abs(photo_box[side] - heat_box[side]) < 1
    if by == "pointer":
        ActionChains(browser).move_to_element(browser.one(".brand")).perform()
    else:
        browser.execute_script("arguments[0].blur()", button)
    browser.wait_for("#heat.on", 0)


def test_a_word_that_is_clicked_keeps_its_heat_map_until_it_is_clicked_again(browser):
    from selenium.webdriver import ActionChains  # noqa: PLC0415

    caption_dog(browser)
    word = browser.all(WORDS)[2]
    for pressed, shown in (("true", 1), ("false", 0)):
        word.click()
        browser.execute_script("document.activeElement.blur()")
        ActionChains(browser).move_to_element(browser.one(".brand")).perform()
        browser.wait_for("#heat.on", shown)
        assert word.get_attribute("aria-pressed") == pressed


def test_candidates_are_bars_and_each_can_be_looked_at(browser, answer):
    caption_dog(browser)
    candidates = answer["candidates"]
    assert len(candidates) == 3
    assert browser.texts("#candidates .text") == [each["caption"] for each in candidates]
    widths = [bar.rect["width"] for bar in browser.all("#candidates .meter i")]
    shares = [math.exp(each["log_prob"]) for each in candidates]
    for width, share in zip(widths, shares, strict=True):
        assert width / max(widths) == pytest.approx(share / max(shares), abs=0.02)
    for text, share in zip(browser.texts("#candidates .value"), shares, strict=True):
        assert float(text.removeprefix("under").rstrip("%")) == pytest.approx(100 * share, abs=0.5)
    browser.all("#candidates button")[1].click()
    assert browser.texts(CHOSEN) == [candidates[1]["caption"]]
    assert browser.texts(WORDS) == candidates[1]["caption"].split()
    assert copied(browser, "text") == candidates[1]["caption"]


def test_the_time_of_each_stage_adds_up(browser):
    caption_dog(browser)
    names, times = browser.texts("#times dt"), browser.texts("#times dd")
    stages = ["opened the photo", "waited for its turn", "looked at it", "chose the words"]
    assert set(stages) < set(names)
    assert names[-1] == "in all"
    told_ms = [float(text.removesuffix(" ms")) for text in times]
    assert sum(told_ms[:-1]) == pytest.approx(told_ms[-1], abs=len(times))
    assert len(browser.all("#stack i")) == len(names) - 1


TOLD = """
  const real = fetch;
  window.fetch = async (...given) => {
    const answer = await real(...given);
    if (!String(given[0]).includes("v1/captions") || !answer.ok) return answer;
    const told = await answer.json();
    Object.assign(told.results[0], %s);
    told.results[0].candidates.forEach((each, n) => (each.confidence = 0.87 - 0.4 * n));
    return new Response(JSON.stringify(told), { headers: answer.headers });
  };
"""


def test_the_confidence_is_told_where_the_service_tells_it(browser, answer):
    caption_dog(browser)
    if "confidence" not in answer:
        assert not browser.one("#confidence").is_displayed()
    browser.execute_script(TOLD % '{confidence: 0.87, warning: "Its end is missing."}')
    browser.one("#clear").click()
    caption_dog(browser)
    assert browser.one("#confidence").text == "87% sure that this is right"
    assert browser.one("#history-list .sub").text == "dog.jpg · 87% sure"
    assert browser.one("#warning").text == "Its end is missing."
    browser.all("#candidates button")[1].click()
    assert browser.one("#confidence").text.startswith("47% sure")


def test_a_caption_that_is_withheld_is_shown_as_a_guess(browser, answer):
    withheld = {"caption": None, "withheld": "low_confidence", "confidence": 0.2}
    tags = [{"label": "pizza", "probability": 0.61}]
    browser.execute_script(TOLD % json.dumps({**withheld, "tags": tags}))
    caption_dog(browser)
    assert browser.texts("#history-list .line") == ["Not sure enough to say"]
    assert "would rather not say" in browser.one("#withheld").text
    assert browser.texts(WORDS) == answer["candidates"][0]["caption"].split()
    assert browser.texts("#tags li") == ["pizza 61%"]
    assert browser.violations() == []


# What is taken elsewhere


def test_the_sentence_is_copied_as_text_as_alt_and_as_json(browser, answer):
    caption_dog(browser)
    assert copied(browser, "text") == answer["caption"]
    assert copied(browser, "alt") == f'alt="{answer["caption"]}"'
    text = copied(browser, "json")
    told = json.loads(text)
    assert told["model"] == {"name": "everyday-efficientnet-lite1", "version": SHIPPED.name}
    assert told["results"][0]["candidates"][0]["words"] == [
        {**word, "log_prob": pytest.approx(word["log_prob"], abs=1e-3), **looked(word)}
        for word in answer["candidates"][0]["words"]
    ]
    assert text.count("\n") < 600  # rows of numbers stay in a line


def looked(word):
    rows = [pytest.approx(row, abs=1e-3) for row in word["attention"]]
    return {"attention": rows, "sentinel": pytest.approx(word["sentinel"], abs=1e-3)}


def test_the_curl_that_is_copied_says_the_same(browser, photos, answer):
    """Also of a name that a shell or curl would take apart."""
    for path in photos[:2]:
        choose(browser, path)
        browser.wait_until(
            f"document.getElementById('filename').textContent.length === {len(path.name)}"
        )
        browser.wait_for("#answer")
        command = copied(browser, "curl")
        done = subprocess.run(
            ["/bin/bash", "-c", command],
            cwd=path.parent,
            capture_output=True,
            text=True,
            check=True,
        )
        told = json.loads(done.stdout)["results"][0]
        assert (told["caption"], unquote(told["filename"])) == (answer["caption"], path.name)
        assert len(told["candidates"]) == 3


# Keys


def test_a_key_is_asked_for_where_keys_are_set(one_browser, tmp_path):
    browser = one_browser
    with Process(SHIPPED, tmp_path, API_KEYS="right-key") as service:
        service.wait_for("/readyz", 200)
        browser.visit(service.url)
        browser.wait_for("#key")
        assert browser.violations() == []
        choose(browser, DOG)  # it waits
        field = browser.one("#key-value")
        for wrong, words in (("wrong-key", "does not take this key"), ("schlüssel", "letters")):
            field.clear()
            field.send_keys(wrong)
            browser.one("#key button").click()
            browser.wait_until(
                f"document.getElementById('key-problem').textContent.includes('{words}')"
            )
        assert browser.all(DONE) == []
        field.clear()
        field.send_keys("right-key")
        field.submit()
        browser.wait_for(DONE)
        assert not browser.one("#key").is_displayed()
        command = copied(browser, "curl")
        assert "$CAPTION_API_KEY" in command
        assert "right-key" not in command
        browser.get(service.url)  # the same tab still has it
        caption_dog(browser)
        browser.one("#key-change").click()
        browser.wait_for("#key")
        assert browser.execute_script("return sessionStorage.getItem('key')") is None
        assert browser.execute_script("return localStorage.length") == 0
        service.process.kill()
        service.process.wait()
    assert browser.complaints() == []


def test_photos_wait_where_a_key_is_no_longer_taken(browser):
    refuse = """
      const real = fetch;
      window.asked = 0;
      const problem = { status: 401, code: "unauthorized", detail: "Send a key." };
      window.fetch = (...given) => String(given[0]).includes("captions") && !window.taken
        ? (window.asked++, Promise.resolve(new Response(JSON.stringify(problem), { status: 401 })))
        : real(...given);
    """
    browser.execute_script(refuse)
    choose(browser, DOG, DOG)
    browser.wait_for("#key")
    time.sleep(0.5)
    assert browser.execute_script("return window.asked") == 2  # once each
    browser.execute_script("window.taken = true")
    browser.one("#key-value").send_keys("new-key")
    browser.one("#key button").click()
    browser.wait_for(DONE, 2)
    browser.execute_script("sessionStorage.clear()")


# What goes wrong


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("notes.txt", b"no photo at all", "no photo that the service can read"),
        ("cut.png", photo()[:200], "damaged or cut short"),
        ("huge.jpg", b"\xff\xd8\xff" + bytes(21 * 2**20), "takes 21.0 MB"),
        ("empty.jpg", b"", "nothing in this file"),
    ],
)
def test_what_cannot_be_read_is_told_in_plain_words(browser, tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    choose(browser, path)
    browser.wait_for("#failure")
    told = browser.one("#failure-text").text
    assert words in told
    assert len(told) > 20
    assert not re.search(r"[a-z]_[a-z]|undefined|null|NaN|Error|\b[45]\d\d\b", told)
    assert browser.texts("#history-list .line") == ["No sentence"]
    assert browser.violations() == []
    caption_dog(browser)  # the others go on


def test_a_service_that_is_away_is_told_and_can_be_asked_again(one_browser, tmp_path):
    browser = one_browser
    with Process(SHIPPED, tmp_path) as service:
        service.wait_for("/readyz", 200)
        browser.visit(service.url)
        caption_dog(browser)
        browser.execute_script("window.real = fetch; window.fetch = () => Promise.reject()")
        choose(browser, DOG)
        browser.wait_for("#failure")
        assert "No answer came" in browser.one("#failure-text").text
        browser.wait_for("#health[data-state=away]")
        browser.execute_script("window.fetch = window.real")
        browser.wait_for("#health[data-state=ready]")
        browser.one("#again").click()
        browser.wait_for(DONE, 2)


def test_photos_wait_for_a_service_that_is_busy(browser, answer):
    refuse = """
      const real = fetch;
      let left = 2;
      const problem = { status: 503, code: "overloaded", retry_after: 1, detail: "No room." };
      window.fetch = (...given) => String(given[0]).includes("captions") && left-- > 0
        ? Promise.resolve(new Response(JSON.stringify(problem), { status: 503 }))
        : real(...given);
    """
    browser.execute_script(refuse)
    choose(browser, DOG)
    browser.wait_until("document.getElementById('working').textContent.includes('busy')")
    browser.wait_for(DONE)
    assert browser.texts("#history-list .line") == [answer["caption"]]


# The session


def test_the_history_is_of_this_tab_and_can_be_cleared(browser, photos):
    choose(browser, photos[0])
    browser.wait_for(DONE)
    choose(browser, photos[2])
    browser.wait_for(DONE, 2)
    assert browser.one("#filename").text == "blocks.png"
    older = browser.all("#history-list button")[1]
    older.click()
    assert browser.one("#filename").text == "dog.jpg"
    assert older.get_attribute("aria-current") == "true"
    kept = "return [localStorage.length, sessionStorage.length, document.cookie]"
    assert browser.execute_script(kept) == [0, 0, ""]
    bases = "indexedDB.databases().then((all) => arguments[0](all.length))"
    assert browser.execute_async_script(bases) == 0
    browser.one("#clear").click()
    assert browser.all("#history-list li") == []
    assert not browser.one("#detail").is_displayed()
    browser.wait_for("#sample")


# For everybody


def focused(browser):
    return browser.execute_script(
        "const on = document.activeElement; return on.id || on.textContent.trim()"
    )


def test_it_works_with_the_keyboard_alone(browser, answer):
    seen = []
    while "sample" not in seen:
        browser.keys(*TAB)
        seen.append(focused(browser))
        assert len(seen) < 10
    assert seen == ["choose", "photograph", "sample"]
    browser.keys(*ENTER, text="\r")
    browser.wait_for(DONE)
    words = answer["caption"].split()
    for _ in range(12):
        browser.keys(*TAB)
        if focused(browser) == words[0]:
            break
    assert focused(browser) == words[0]
    browser.keys(*RIGHT)
    assert focused(browser) == words[1]
    heat(browser)
    browser.keys(*END)
    assert focused(browser) == words[-1]
    browser.keys(*TAB)
    assert focused(browser) == "Text"
    outline = "return getComputedStyle(document.activeElement).outlineStyle"
    assert browser.execute_script(outline) == "solid"
    browser.keys(*ENTER, text="\r")
    browser.wait_for("[data-copy=text][data-copied=Copied]")
    assert clipboard(browser) == answer["caption"]


def test_a_finger_taps_a_word_and_sees_where_the_network_looked(browser):
    browser.look(width=390, height=844)
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    try:
        browser.refresh()
        browser.wait_for("#health[data-state=ready]")
        assert not browser.one(".with-mouse").is_displayed()
        caption_dog(browser)
        assert browser.one("#look").text.startswith("Tap a word")
        word = browser.all(WORDS)[2]
        for shown in (1, 0):
            box = browser.execute_script(
                "arguments[0].scrollIntoView({ block: 'center' });"
                "return arguments[0].getBoundingClientRect().toJSON()",
                word,
            )
            place = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
            for kind, points in (("touchStart", [place]), ("touchEnd", [])):
                touch = {"type": kind, "touchPoints": points}
                browser.execute_cdp_cmd("Input.dispatchTouchEvent", touch)
            browser.wait_for("#heat.on", shown)
    finally:
        browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})


def test_what_happens_is_said_to_who_listens(browser, answer):
    caption_dog(browser)
    said = browser.one("#announce").get_attribute("textContent")
    assert said.startswith(f"dog.jpg: {answer['caption']}")
    word = answer["candidates"][0]["words"][2]
    spoken = browser.all(WORDS)[2].get_attribute("aria-label")
    assert spoken.startswith(word["text"])
    for part in (r"\d% likely", r"\d% from the photo", "mostly from the "):
        assert re.search(part, spoken)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 820, 1440])
def test_it_fits_every_width_in_both_colours_and_axe_finds_nothing(browser, width, dark):
    browser.look(dark=dark, width=width)
    fits = "return document.documentElement.scrollWidth <= innerWidth"
    assert browser.execute_script(fits)
    assert browser.violations() == []
    caption_dog(browser)
    browser.execute_script("arguments[0].focus()", browser.all(WORDS)[2])
    heat(browser)
    browser.wait_until(  # a colour on its way is neither
        "document.getAnimations().every((each) => each.playState === 'finished')"
    )
    assert browser.execute_script(fits)
    assert browser.violations() == []
    ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    lightness = sum(map(int, re.findall(r"\d+", ground)))
    assert (lightness < 200) if dark else (lightness > 600)


# The documentation


def test_the_documentation_is_interactive_and_asks_nobody_else(browser, service):
    browser.get(f"{service.url}/docs")
    browser.wait_for(".opblock", len(httpx.get(f"{service.url}/openapi.json").json()["paths"]))
    browser.one("#operations-default-caption_images button").click()
    browser.wait_for(".try-out__btn")[0].click()
    assert browser.one("#operations-default-caption_images input[type=file]")  # not JSON to type
    browser.one("#operations-default-caption_images button").click()
    browser.one("#operations-default-list_checkpoints button").click()
    browser.wait_for(".try-out__btn")[0].click()
    browser.wait_for("button.execute")[0].click()
    browser.wait_for(".live-responses-table .response")
    assert browser.texts(".live-responses-table .response .response-col_status") == ["200"]
    assert "everyday-efficientnet-lite1" in browser.one(".live-responses-table").text
