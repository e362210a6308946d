"""Write a working plug-in package: a defense or an attack, its entry point and a test."""

from __future__ import annotations

import keyword
import re
from pathlib import Path
from string import Template

from robobench.core.paths import check_writable
from robobench.errors import RequestError
from robobench.plugins.discovery import KINDS, discover

TEMPLATES = Path(__file__).parent / "templates"
RUN_COMMAND = {
    "defense": "robobench compare --plugin $module.py --defenses standard,$name",
    "attack": "robobench run --defense standard --plugin $module.py --attacks $name",
}


def write_template(kind: str, name: str, folder: Path | None = None) -> list[Path]:
    """Write the package of a new plug-in and return the paths of its files.

    Args:
        kind: "defense" or "attack".
        name: lower-case letters, digits and dashes.
        folder: the new folder; default: `name` in the current folder.

    Raises:
        RequestError: unknown kind, invalid or registered name, or the folder exists.
    """
    if kind not in KINDS:
        raise RequestError(f"unknown plug-in kind '{kind}'; known: {', '.join(KINDS)}")
    module = name.replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or keyword.iskeyword(module):
        raise RequestError(f"invalid {kind} name '{name}'; use lower-case letters, digits and dashes, as in my-{kind}")
    taken = discover(kind).get(name)
    if taken:
        raise RequestError(f"{kind} '{name}' is already registered by {taken.module}; choose another name")
    folder = folder or Path(name)
    if folder.exists():
        raise RequestError(f"'{folder}' already exists; choose another name or --out")
    check_writable(folder)
    values = {
        "kind": kind,
        "name": name,
        "module": module,
        "package": f"robobench-{name}",
        "title": name.replace("-", " ").capitalize(),
        "cls": "".join(part.capitalize() for part in name.split("-")),
    }
    values["run"] = Template(RUN_COMMAND[kind]).substitute(values)
    files = {
        f"{module}.py": f"{kind}.py",
        f"tests/test_{module}.py": "test.py",
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
    }
    written = []
    for target, template in files.items():
        path = folder / target
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(Template((TEMPLATES / f"{template}.tmpl").read_text()).substitute(values))
        written.append(path)
    return written
