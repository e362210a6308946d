"""Interfaces that scripts and plug-ins rely on, compared with files beside this one.

After an intended change, rewrite the files and note the change in CHANGELOG.md:

    python tests/golden/test_interfaces.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer

from robobench import api
from robobench.cli import app
from robobench.results.rows import COLUMNS

HERE = Path(__file__).parent


def command_lines() -> str:
    """Return the help of every command: its text, arguments, options, defaults and examples."""
    lines: list[str] = []

    def add(name: str, command: Any) -> None:
        lines.append(f"{name}: {' '.join((command.help or '').split())}")
        for parameter in command.params:
            default = "" if parameter.default in (None, False, ()) else f" [{parameter.default}]"
            text = getattr(parameter, "help", None) or ""
            lines.append(f"  {', '.join(parameter.opts)}{default}: {text}".rstrip())
        lines.extend(f"  example: {line.strip()}" for line in (command.epilog or "").splitlines() if line.strip())
        for child, sub in getattr(command, "commands", {}).items():
            add(f"{name} {child}", sub)

    add("robobench", typer.main.get_command(app))
    return "\n".join(lines) + "\n"


GOLDEN = {
    "help.txt": command_lines,
    "api.txt": lambda: "\n".join(api.__all__) + "\n",
    "rows.txt": lambda: "\n".join(COLUMNS) + "\n",
}


@pytest.mark.parametrize("name", GOLDEN)
def test_interface_is_unchanged(name):
    assert GOLDEN[name]() == (HERE / name).read_text(), f"run: python {Path(__file__).name} if this is intended"


def test_api_exports_exist_and_are_sorted():
    assert sorted(api.__all__, key=str.lower) == sorted(set(api.__all__), key=str.lower)
    assert all(hasattr(api, name) for name in api.__all__)


if __name__ == "__main__":
    for name, make in GOLDEN.items():
        (HERE / name).write_text(make())
