"""The examples in Python on our pages run as they stand, with our address for theirs."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from support.clips import BLUE, RED, animation, plain
from support.colours import COLOURS

ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    "README.md",
    "docs/api.md",
    "docs/clips.md",
    "docs/dialects.md",
    "deploy/client/README.md",
)
CLIP = "party.gif"
NEEDED = ("openai", "ollama", "huggingface_hub", "tritonclient")
GENERATED = "captions"  # by openapi-generator, where somebody has made and installed it
SAID = "a black dog is running on the grass"


def examples():
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for code in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            name = next((one for one in NEEDED if one in code), "ours")
            name = GENERATED if f"from {GENERATED} import" in code else name
            yield pytest.param(code, name, id=f"{page}-{name}")


def of_clips(*, wanted):
    return [each for each in examples() if (CLIP in each.values[0]) is wanted]


@pytest.mark.parametrize(("code", "needs"), of_clips(wanted=False))
def test_an_example_says_what_the_service_says(url, code, needs, tmp_path):
    if needs != "ours" and find_spec(needs) is None:
        pytest.skip(f"without {needs}")
    (tmp_path / "photo.jpg").write_bytes(SAID.encode())  # the fake says what the bytes say
    code = code.replace("http://localhost:8000", url)
    code = code.replace("localhost:8000", url.removeprefix("http://"))
    code = code.replace('everyday-efficientnet-lite1"', 'tiny"')
    if url in code:
        code = code.replace("docs/img/dog.jpg", "photo.jpg")
    else:  # the engine itself
        (tmp_path / "model_store").symlink_to(ROOT / "model_store")
        (tmp_path / "docs").symlink_to(ROOT / "docs")
    assert printed(code, tmp_path) == SAID


@pytest.mark.parametrize(("code", "needs"), of_clips(wanted=True))
def test_an_example_of_a_clip_tells_its_shots(colours_url, code, needs, tmp_path):
    assert needs == "ours"
    clip = animation([plain(RED), plain(BLUE)], duration_ms=[3000, 2000])
    (tmp_path / CLIP).write_bytes(clip)
    told = printed(code.replace("http://localhost:8000", colours_url), tmp_path).splitlines()
    car, _, dogs, _ = COLOURS
    assert told == [car, f"0.0 {car}", f"3.0 {dogs}"]
    written = (tmp_path / "party.vtt").read_text(encoding="utf-8")
    assert written.startswith("WEBVTT\n")
    assert dogs in written


def printed(code, directory):
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=directory, env=environment(), capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def environment():
    paths = [str(ROOT), str(ROOT / "deploy/client"), *filter(None, sys.path)]
    return {"PYTHONPATH": ":".join(paths), "PATH": ""}


def test_every_dialect_with_a_client_has_an_example():
    needed = {each.values[1] for each in examples()}
    assert needed == {*NEEDED, GENERATED, "ours"}
