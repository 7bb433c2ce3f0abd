"""What a stranger gets the minute after `git clone`: the shipped checkpoint on real photos."""

import json
from pathlib import Path

import pytest
import skimage
from PIL import Image

from app import loading
from app.captioner.pipeline import Captioner
from app.cli import main
from app.settings import PROJECT_ROOT, Settings
from support.drawn import saved
from support.fake import serving

PHOTOS = Path(skimage.__file__).parent / "data"
SHIPPED = PROJECT_ROOT / Settings().checkpoint
MORE_PHOTOS = PROJECT_ROOT.parent / "shared" / "photos"


@pytest.fixture(scope="module")
def captioner():
    return Captioner.load(SHIPPED)


def said(captioner, path):
    image = captioner.read(path.read_bytes(), max_pixels=40_000_000)
    return captioner.caption([image]).captions[0][0]


def test_it_fits_into_30_megabytes():
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*")) < 30_000_000


def test_it_says_its_golden_caption(captioner):
    captioner.check_golden()


def test_the_card_tells_what_a_user_must_know():
    card = (SHIPPED / "CARD.md").read_text()
    for part in ("## Scores", "cider", "## Limits", "## Licences", "## Recipe", "Flickr8k"):
        assert part in card


def test_its_dev_scores_are_in_the_manifest(captioner):
    dev = captioner.manifest.scores["dev"]
    assert dev["images"] == 1000
    assert dev["tokeniser"] == "lower-alphanumeric"
    assert dev["cider"]["value"] >= 0.598
    lost = dev["cider"]["value"] - captioner.manifest.scores["dev_int8"]["cider"]["value"]
    assert lost <= 0.005


def test_a_real_photo_gets_a_sensible_sentence(captioner):
    best = said(captioner, PHOTOS / "astronaut.png")
    assert {"woman", "man", "girl", "boy", "person"} & set(best.text.split()), best.text
    assert 3 <= len(best.words) <= 20


def test_different_photos_get_different_sentences(captioner):
    names = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")
    assert len({said(captioner, PHOTOS / name).text for name in names}) >= 3


@pytest.mark.skipif(not MORE_PHOTOS.is_dir(), reason="no shared photos beside the checkout")
@pytest.mark.parametrize(
    ("photo", "expected"),
    [
        ("surfing.jpg", {"surfer", "surfing", "surfboard", "wave", "ocean", "water"}),
        ("soccer.jpg", {"soccer", "ball", "football", "playing", "player", "players"}),
    ],
)
def test_a_photo_from_the_web_gets_a_sensible_sentence(captioner, photo, expected):
    best = said(captioner, MORE_PHOTOS / photo)
    assert expected & set(best.text.split()), best.text


async def test_the_service_serves_it(captioner):
    photo = (PHOTOS / "astronaut.png").read_bytes()
    async with serving(captioner) as client:
        answer = await client.post(
            "/v1/captions?attention=true", files={"image": ("me.png", photo, "image/png")}
        )
    assert answer.status_code == 200
    body = answer.json()
    assert body["model"]["name"] == "everyday-efficientnet-lite1"
    words = body["results"][0]["candidates"][0]["words"]
    assert " ".join(word["text"] for word in words) == body["results"][0]["caption"]
    assert all(len(word["attention"]) == 7 and len(word["attention"][0]) == 7 for word in words)


def plain(width: int, height: int, kind: str) -> bytes:
    return saved(Image.new("RGB", (width, height), (180, 40, 90)), kind)


@pytest.fixture
def odd_files(tmp_path):
    """Give files of which something is to be known, with a word of what, and a photo."""
    astronaut = (PHOTOS / "astronaut.png").read_bytes()
    jpeg = saved(Image.open(PHOTOS / "astronaut.png"), "JPEG")
    files = {
        "photo.png": (astronaut, None),
        "cut.jpg": (jpeg[: len(jpeg) * 9 // 10], "ends early"),
        "pixel.png": (plain(1, 1, "PNG"), "one colour"),
        "plain.jpg": (plain(640, 480, "JPEG"), "one colour"),
    }
    for name, (data, _) in files.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path, {name: expected for name, (_, expected) in files.items()}


@pytest.mark.parametrize("cached", [0, 8])
async def test_what_shows_nothing_and_what_ends_early_has_a_warning(captioner, odd_files, cached):
    place, expected = odd_files
    async with serving(captioner, result_cache_entries=cached) as client:
        for name, word in expected.items():
            answer = await client.post("/v1/captions", content=(place / name).read_bytes())
            (result,) = answer.json()["results"]
            assert result["caption"]
            assert word in result["warning"] if word else "warning" not in result


def test_the_command_warns_too(captioner, odd_files, monkeypatch, capsys):
    place, expected = odd_files
    monkeypatch.setattr(loading, "load_captioner", lambda _: captioner)
    assert main(["caption", "--json", *(str(place / name) for name in expected)]) == 0
    out, err = capsys.readouterr()
    told = {
        Path(line["image"]).name: line.get("warning")
        for line in map(json.loads, out.split("\n")[:-1])
    }
    for name, word in expected.items():
        assert word in told[name] and f"{name}: {told[name]}" in err if word else not told[name]
