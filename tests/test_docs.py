"""What a user can touch stands in the documentation."""

import ast
import re
from pathlib import Path

import pytest

from app.captioner.pipeline import Captioner
from app.main import create_app
from app.settings import KEY_FILES, Settings, variable
from app.web.problems import ALL_PROBLEM_TYPES

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path
    for folder in (ROOT, ROOT / "docs", ROOT / "docs/adr", ROOT / "benchmarks")
    for path in folder.glob("*.md")
)
MOST_COLUMNS = 120
A_LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)(?:#[^)]*)?\)")
A_TEST = re.compile(r"`(?:tests/)?((?:\w+/)*test_\w+(?:\.py(?:::\w+)*)?)`")


def documentation():
    pages = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md"]
    return "\n".join(page.read_text(encoding="utf-8") for page in pages if page.exists())


def missing(names, text):
    return [name for name in names if not re.search(rf"(?<![\w/]){re.escape(name)}(?!\w)", text)]


def test_every_setting_is_documented():
    names = [*KEY_FILES.values(), *map(variable, Settings.model_fields)]
    assert missing(names, documentation()) == []


def test_every_documented_setting_exists():
    page = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `(CAPTION_\w+)`", page, re.MULTILINE))
    assert documented == {*KEY_FILES.values(), *map(variable, Settings.model_fields)}


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
    assert len(names) == 28
    assert missing(names, documentation()) == []


def test_every_make_verb_is_documented():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    verbs = re.findall(r"^([a-z-]+):.*##", makefile, re.MULTILINE)
    assert {"serve", "test", "check"} <= set(verbs)
    text = documentation() + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert missing([f"make {verb}" for verb in verbs], text) == []


def defined_in(file):
    """Give a file of tests and what it defines, each as pytest names it."""
    place = file.relative_to(ROOT / "tests").as_posix()
    yield place
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        yield f"{place}::{getattr(node, 'name', '')}"
        for inner in node.body if isinstance(node, ast.ClassDef) else ():
            yield f"{place}::{node.name}::{getattr(inner, 'name', '')}"


def test_every_test_that_a_page_names_exists():
    exist = {name for file in (ROOT / "tests").rglob("*.py") for name in defined_in(file)}
    named = {(page.name, name) for page in PAGES for name in A_TEST.findall(page.read_text())}
    assert len(named) > 200
    assert sorted((page, name) for page, name in named if name not in exist) == []


def test_every_promise_has_a_test_or_a_program():
    page = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
    promises = page.split("\n## Not proved")[0].split("\n**")[2:]  # the first tells what Proof is
    assert len(promises) > 140
    assert [each[:60] for each in promises if not re.search(r"`(tests|benchmarks)/", each)] == []


each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@each_page
def test_every_link_between_pages_leads_somewhere(page):
    targets = A_LINK.findall(page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


@each_page
def test_no_line_of_prose_is_long(page):
    text = page.read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line for line in prose.splitlines() if " " in line.strip(" -") and line[0] != "|"]
    assert [line for line in lines if len(line) > MOST_COLUMNS] == []


@pytest.mark.parametrize("precision", [None, "float32"])
def test_the_first_answer_that_a_newcomer_reads_is_true(precision):
    captioner = Captioner.load(ROOT / Settings().checkpoint, precision=precision)
    photo = (ROOT / "docs/img/dog.jpg").read_bytes()
    said = captioner.caption([captioner.read(photo, max_pixels=1_000_000)]).captions[0][0].text
    for page in ("README.md", "docs/api.md"):
        assert f'"caption": "{said}"' in (ROOT / page).read_text(encoding="utf-8")
