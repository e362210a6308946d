"""Imports point inward: plug-ins see the core's small surface, and the core names no plug-in."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from robobench.plugins.discovery import KINDS, builtin_folder, discover

SURFACE = {
    "api",
    "inner",
    "losses",
    "threat",
    "augment",
    "search",
    "randomness",
    "errors",
    "ensemble",
    "processes",
    "streams",
}
ROOT = Path(plugins.__file__).parent
FILES = [(kind, path) for kind in KINDS for path in sorted(builtin_folder(kind).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    """Every module a file imports, by absolute name."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inside_package = path.parent.parent.name in KINDS.values()
            assert node.level == 0 or (node.level == 1 and inside_package), f"{path} imports a sibling"
            names |= {node.module or ""} if node.level == 0 else set()
    return names


@pytest.mark.parametrize(("kind", "path"), FILES, ids=[str(p.parent.name + "/" + p.name) for _, p in FILES])
def test_a_plugin_imports_only_the_surface_and_its_own_package(kind, path):
    top = builtin_folder(kind)
    package = path.relative_to(top).parts[0] if path.parent != top else None
    for name in imported(path):
        head, *rest = name.split(".")
        if head == "robobench":
            own = package is not None and rest[:2] == [KINDS[kind], package]
            assert own or (rest and rest[0] in SURFACE), f"{path.name} imports {name}"
        elif head in ("attacks", "defenses"):
            pytest.fail(f"{path.name} imports {name} by its bare name")


def test_the_core_names_no_plugin():
    names = {name for kind in KINDS for name in discover(kind)}
    for path in ROOT.rglob("*.py"):
        if path.name == "presets.py" or "attacks" in path.parts[-2:] or "defenses" in path.parts[-2:]:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in names:
                allowed = path.name == "request.py" and node.value in ("standard", "pgd", "fgsm")
                allowed |= node.value == "transfer"  # the name of a protocol too
                allowed |= path.name == "published.py" and node.value == "standard"  # a budget's word, not the defense
                allowed |= (
                    path.name in ("listing.py", "environment.py") and node.value == "pyautoattack"
                )  # and of a package
                assert allowed, f"{path.name} names the plug-in '{node.value}'"
