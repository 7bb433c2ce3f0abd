"""The tutorial of docs/training.md, typed as it stands, from a folder of 50 photos to a caption."""

import re
import shlex
from pathlib import Path

import pytest

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


@pytest.mark.long
async def test_the_tutorial_leads_to_a_served_caption(tmp_path, monkeypatch):
    fifty_photos(tmp_path)
    (tmp_path / "trainer").symlink_to(ROOT / "trainer")
    monkeypatch.chdir(tmp_path)
    verbs = [command[0] for command in commands()]
    assert verbs == ["prepare", "doctor", "fit", "evaluate", "publish"]
    assert [main(command) for command in commands()] == [0, 0, 0, 0, 0]
    assert "<h2>Calibration</h2>" in (tmp_path / "runs/report/index.html").read_text()
    captioner = Captioner.load(tmp_path / "my-store/own-photos/1")
    async with serving(captioner) as client:
        headers = {"Content-Type": "image/jpeg"}
        content = (tmp_path / "photos/0.jpg").read_bytes()
        answer = await client.post("/v1/captions", content=content, headers=headers)
        assert answer.status_code == 200
        assert answer.json()["model"] == {"name": "own-photos", "version": "1"}
        assert answer.json()["results"][0]["caption"]
