"""Digest of a plug-in's code. Docstrings, comments, imports and formatting do not change it."""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

from robobench.plugins.discovery import KINDS, load_attack

DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def code_digest(cls: type) -> str:
    """Hash the code of a plug-in class to 16 hexadecimal digits.

    It covers the class's file, or every .py file of its package, and the code of an attack's components.
    """
    path = Path(str(sys.modules[cls.__module__].__file__))
    package = path.parent if (path.parent / "__init__.py").exists() and path.parent.name != "src" else None
    own_package = package is not None and package.name not in KINDS.values()
    files = sorted(package.rglob("*.py")) if own_package and package else [path]
    parts = [source_digest(file.read_text()) for file in files]
    parts += [code_digest(load_attack(name)) for name in getattr(cls, "component_names", ())]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def source_digest(source: str) -> str:
    """Hash the syntax tree of a Python file, without docstrings and imports, the same in every Python version."""
    return hashlib.sha256("\x1f".join(_tokens(ast.parse(source))).encode()).hexdigest()


def _tokens(node: object) -> Iterator[str]:
    """Walk a syntax tree: the types of its nodes, the names of their fields, and plain values."""
    if isinstance(node, list):
        yield "["
        for item in node:
            if not isinstance(item, (ast.Import, ast.ImportFrom)):
                yield from _tokens(item)
        yield "]"
    elif isinstance(node, ast.AST):
        yield type(node).__name__
        for name, value in ast.iter_fields(node):
            if name == "body" and isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
                value = value[1:]
            if value is not None and value != []:  # newer Python versions have more empty fields
                yield name
                yield from _tokens(value)
    else:
        yield repr(node)
