"""The tutorial of docs/training.md, typed as it stands, from a folder of 50 photos to a caption."""

import json
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from app.captioner.pipeline import Captioner
from support.fake import serving
from support.tiny import PLACES, SUBJECTS, photo
from trainer.__main__ import main

ROOT = Path(__file__).parents[3]
HEADING = "## From a folder of photos to a served caption"


def commands() -> list[list[str]]:
    page = (ROOT / "docs/training.md").read_text(encoding="utf-8")
    section = page.split(HEADING)[1].split("\n## ")[0]
    typed = re.findall(r"^python -m trainer (.+)$", section, re.MULTILINE)
    return [shlex.split(line) for line in typed]


def fifty_photos(place: Path) -> None:
    (place / "photos").mkdir()
    lines = ["image,caption"]
    for n in range(50):
        (place / "photos" / f"{n}.jpg").write_bytes(photo(n, kind="JPEG"))
        lines.append(f"{n}.jpg,A {SUBJECTS[n % 4]} plays in the {PLACES[n // 4 % 4]} .")
        lines.append(f'{n}.jpg,"A {SUBJECTS[n % 4]}, seen from behind ."')
    (place / "captions.csv").write_text("\n".join(lines) + "\n")


def as_it_stands(place: Path) -> list[str]:
    return commands()[0]


def as_pairs_of_tiff_and_text(place: Path) -> list[str]:
    """A folder of pairs, the images of a kind that the service cannot read."""
    for n in range(50):
        with Image.open(place / "photos" / f"{n}.jpg") as image:
            image.save(place / "photos" / f"{n}.tif")
        (place / "photos" / f"{n}.jpg").rename(place / f"{n}.jpg")
        words = f"A {SUBJECTS[n % 4]} plays in the {PLACES[n // 4 % 4]} .\n"
        (place / "photos" / f"{n}.txt").write_text(words)
    (place / "photos" / "0.jpg").symlink_to(place / "0.jpg")  # what the service is asked about
    return ["prepare", "--from", "photos", "--out", "my-photos"]


def as_two_files_of_coco_in_chinese(place: Path) -> list[str]:
    subjects, places = ("狗", "女孩", "男孩", "猫"), ("草地上", "水里", "雪地里", "沙滩上")
    for split, numbers in (("train", range(40)), ("val", range(40, 50))):
        images = [{"id": n, "file_name": f"{n}.jpg"} for n in numbers]
        notes = [
            {"image_id": n, "caption": f"一只{subjects[n % 4]}在{places[n // 4 % 4]}玩。"}
            for n in numbers
        ]
        content = json.dumps({"images": images, "annotations": notes}, ensure_ascii=False)
        (place / f"captions_{split}2014.json").write_text(content, encoding="utf-8")
    files = ["captions_train2014.json", "captions_val2014.json"]
    return ["prepare", "--from", *files, "--images", "photos", "--out", "my-photos"]


@pytest.mark.long
@pytest.mark.parametrize(
    "source", [as_it_stands, as_pairs_of_tiff_and_text, as_two_files_of_coco_in_chinese]
)
async def test_the_tutorial_leads_to_a_served_caption(tmp_path, monkeypatch, source):
    fifty_photos(tmp_path)
    (tmp_path / "trainer").symlink_to(ROOT / "trainer")
    monkeypatch.chdir(tmp_path)
    verbs = [command[0] for command in commands()]
    assert verbs == ["prepare", "doctor", "fit", "evaluate", "publish"]
    typed = [source(tmp_path), *commands()[1:]]
    assert [main(command) for command in typed] == [0, 0, 0, 0, 0]
    assert "<h2>Calibration of words</h2>" in (tmp_path / "runs/report/index.html").read_text()
    captioner = Captioner.load(tmp_path / "my-store/own-photos/1")
    async with serving(captioner) as client:
        headers = {"Content-Type": "image/jpeg"}
        content = (tmp_path / "photos/0.jpg").read_bytes()
        answer = await client.post("/v1/captions", content=content, headers=headers)
        assert answer.status_code == 200
        assert answer.json()["model"] == {"name": "own-photos", "version": "1"}
        assert answer.json()["results"][0]["caption"]
