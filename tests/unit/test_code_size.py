"""Modules and functions stay small enough to be read at once."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import robobench
from robobench.plugins.discovery import KINDS, builtin_folder

MODULE_LINES, FUNCTION_LINES = 400, 60

ROOT = Path(robobench.__file__).parent
FILES = {f"robobench/{path.relative_to(ROOT)}": path for path in sorted(ROOT.rglob("*.py"))}
for kind, folder in KINDS.items():
    top = builtin_folder(kind)
    FILES |= {f"{folder}/{path.relative_to(top)}": path for path in sorted(top.rglob("*.py"))}


@pytest.mark.parametrize("name", FILES)
def test_module_and_functions_are_short(name):
    text = FILES[name].read_text()
    lines = {name: (len(text.splitlines()), MODULE_LINES)}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno is not None
            lines[f"{name}: {node.name}"] = (node.end_lineno - node.lineno + 1, FUNCTION_LINES)
    for what, (count, most) in lines.items():
        assert count <= most, f"{what} has {count} lines, more than {most}; split it"
