"""docs/openapi.json is what the service serves; where it is not, the test says what changed."""

import json
from pathlib import Path

import pytest

from app.main import create_app
from app.settings import Settings

PAGE = Path(__file__).parents[1] / "docs" / "openapi.json"


def changes(before, now, where=""):
    """Tell in words what one JSON value has that another has not."""
    if isinstance(before, dict) and isinstance(now, dict):
        gone = [f"{where}/{key}: gone" for key in before.keys() - now.keys()]
        new = [f"{where}/{key}: new" for key in now.keys() - before.keys()]
        kept = before.keys() & now.keys()
        within = [line for key in kept for line in changes(before[key], now[key], f"{where}/{key}")]
        return sorted([*gone, *new, *within])
    if isinstance(before, list) and isinstance(now, list):
        gone = [f"{where}: no longer lists {one!r}" for one in before if one not in now]
        new = [f"{where}: now lists {one!r}" for one in now if one not in before]
        order = [f"{where}: in another order"] if not gone + new and before != now else []
        return [*gone, *new, *order]
    same = type(before) is type(now) and before == now
    return [] if same else [f"{where}: {before!r} became {now!r}"]


def test_the_committed_description_is_what_the_service_serves():
    now = json.loads(json.dumps(create_app(Settings()).openapi()))
    found = changes(json.loads(PAGE.read_text(encoding="utf-8")), now)
    assert not found, "\n".join(
        [
            "The API is not what docs/openapi.json says:",
            *found,
            "If that is meant: `make openapi`, and a line in CHANGELOG.md if callers notice.",
        ]
    )


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"paths": {"/a": {}}}, {"paths": {"/b": {}}}, ["/paths//a: gone", "/paths//b: new"]),
        ({"a": {"maximum": 5}}, {"a": {"maximum": 6}}, ["/a/maximum: 5 became 6"]),
        ({"a": ["x"]}, {"a": ["y"]}, ["/a: no longer lists 'x'", "/a: now lists 'y'"]),
        ({"a": [1, 2]}, {"a": [2, 1]}, ["/a: in another order"]),
        ({"a": {"b": 1}}, {"a": [1]}, ["/a: {'b': 1} became [1]"]),
        ({"a": 1}, {"a": True}, ["/a: 1 became True"]),
    ],
)
def test_what_changed_is_told_in_words(before, now, told):
    assert changes(before, now) == told
