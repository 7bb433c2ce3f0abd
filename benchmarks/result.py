"""What a program found: a table and one JSON line, printed and kept in a file that a page can cite.

Only the standard library is needed, so that programs which do without `app` can use it.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PROJECT_ROOT = Path(__file__).resolve().parents[1]
CPU_INFO = Path("/proc/cpuinfo")
LIBRARIES = ("openvino", "torch")
INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")
"""What a network's speed depends on more than on the name of the processor."""
_PATH = re.compile(r"(?<![\w./:~-])(/|~/|(?:\.\./)+)((?:[^\s/'\":,;)]+/)*)([^\s/'\":,;)]+)/?")


def add_output(parser: argparse.ArgumentParser) -> None:
    """Declare where the result is kept."""
    parser.add_argument("--output", type=Path, metavar="FILE", help="keep the result, as Markdown")


def report(
    table: Sequence[str], line: dict[str, Any], output: Path | None, *, markdown: bool = False
) -> None:
    """Print a table and its JSON line; write both to a file where one is named.

    Args:
        table: lines of text.
        line: JSON-ready; ``benchmark`` names the program.
        output: a Markdown file; what it held is replaced.
        markdown: the table is Markdown itself.
    """
    for row in table:
        print(row)
    print(json.dumps(line))
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(page(table, line, sys.argv, markdown=markdown), encoding="utf-8")


def page(
    table: Sequence[str], line: dict[str, Any], command: Sequence[str], *, markdown: bool = False
) -> str:
    """Write the Markdown: what was run, on what, and what came of it."""
    facts = {
        "command": f"`{command_without_paths(command)}`",
        "date": datetime.now(tz=UTC).date().isoformat(),
        "commit": commit(),
        "CPU": f"{cpu_model()}, {os.cpu_count()} cores{cpu_instructions()}",
        **{name: importlib.metadata.version(name) for name in LIBRARIES if find_spec(name)},
    }
    text = "\n".join(table)
    parts = [
        f"# {line['benchmark']}",
        "\n".join(f"- {name}: {fact}" for name, fact in facts.items()),
        without_paths(text) if markdown else _block("", text),
        _block("json", json.dumps(line)),
    ]
    return "\n\n".join(parts) + "\n"


def _block(language: str, text: str) -> str:
    return f"```{language}\n{without_paths(text)}\n```"


def command_without_paths(command: Sequence[str]) -> str:
    """Give the command as it is typed in the project's root, paths of this machine as names."""
    program, *arguments = command
    return f"python benchmarks/{Path(program).name} {without_paths(shlex.join(arguments))}".strip()


def without_paths(text: str) -> str:
    """Leave of every path outside the project its last name: who reads has other folders."""
    return _PATH.sub(_name_of_path, text)


def _name_of_path(match: re.Match[str]) -> str:
    start, folders, name = match.groups()
    first = Path("/", folders.partition("/")[0])
    on_this_machine = start != "/" or (folders and first.exists())  # /v1/captions is none
    return name if on_this_machine else match.group()


def commit(tree: Path = PROJECT_ROOT) -> str:
    """Name a checkout's commit; ``-dirty`` where files differ from it, ``unknown`` without git."""
    asking = ["git", "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        ran = subprocess.run(
            asking, cwd=tree, capture_output=True, text=True, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return ran.stdout.strip()


def cpu_model(cpu_info: Path = CPU_INFO) -> str:
    """Name the processor, as Linux does where it can."""
    return _described("model name", cpu_info) or platform.processor() or platform.machine()


def cpu_instructions(cpu_info: Path = CPU_INFO) -> str:
    """Give those of `INSTRUCTIONS` that the processor has, each after a comma and a space."""
    flags = _described("flags", cpu_info).split()
    return "".join(f", {name}" for name in INSTRUCTIONS if name in flags)


def _described(name: str, cpu_info: Path) -> str:
    try:
        described = cpu_info.read_text(encoding="utf-8")
    except OSError:
        return ""
    found = re.search(rf"^{name}\s*:\s*(.+)$", described, re.MULTILINE)
    return found.group(1) if found else ""
