"""Print what pyproject.toml depends on, with the extras named: all that an image installs but us.

The image installs these before it copies any code, so that a change of code keeps that layer.

Run: python3 deploy/dependencies.py [EXTRA ...]
"""

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def dependencies(project: dict[str, Any], extras: list[str]) -> Iterator[str]:
    """Give each requirement; an extra that names another of ours stands for what that one has."""
    yield from project["dependencies"]
    for extra in extras:
        for requirement in project["optional-dependencies"][extra]:
            ours = re.fullmatch(rf"{project['name']}\[(.+)\]", requirement)
            if ours:
                yield from dependencies(project, [name.strip() for name in ours[1].split(",")])
            else:
                yield requirement


def main() -> None:
    """Print one requirement a line."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    print(*dependencies(project, sys.argv[1:]), sep="\n")


if __name__ == "__main__":
    main()
