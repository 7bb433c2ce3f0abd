"""What a user can touch stands in the documentation."""

import re
from pathlib import Path

from app.main import create_app
from app.settings import KEYS_FILE, Settings, variable
from app.web.problems import ALL_PROBLEM_TYPES

ROOT = Path(__file__).resolve().parents[1]


def documentation():
    pages = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md"]
    return "\n".join(page.read_text(encoding="utf-8") for page in pages if page.exists())


def missing(names, text):
    return [name for name in names if not re.search(rf"(?<![\w/]){re.escape(name)}(?!\w)", text)]


def test_every_setting_is_documented():
    names = [KEYS_FILE, *map(variable, Settings.model_fields)]
    assert missing(names, documentation()) == []


def test_every_documented_setting_exists():
    page = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `(CAPTION_\w+)`", page, re.MULTILINE))
    assert documented == {KEYS_FILE, *map(variable, Settings.model_fields)}


def test_every_endpoint_is_documented():
    paths = list(create_app(Settings()).openapi()["paths"])
    assert len(paths) >= 7
    assert missing(paths, documentation()) == []


def test_every_error_code_is_documented_with_its_status():
    page = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", page, re.MULTILINE)
    assert {(int(status), code) for status, code in rows} == {
        (problem_type.status, problem_type.code) for problem_type in ALL_PROBLEM_TYPES.values()
    }


def test_every_metric_is_documented():
    registry = create_app(Settings()).state.app_state.metrics.registry
    names = {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in registry.collect()
        if family.name.startswith("caption_")
    }
    names = {"caption_checkpoint_info" if n == "caption_checkpoint" else n for n in names}
    assert len(names) == 24
    assert missing(names, documentation()) == []


def test_every_make_verb_is_documented():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    verbs = re.findall(r"^([a-z]+):.*##", makefile, re.MULTILINE)
    assert {"serve", "test", "check"} <= set(verbs)
    text = documentation() + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert missing([f"make {verb}" for verb in verbs], text) == []
