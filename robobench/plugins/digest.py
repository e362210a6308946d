"""Digest of a plug-in's code, part of every key. Docstrings, comments, imports and formatting do not change it."""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from robobench.plugins.discovery import KINDS, load_attack

DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def code_digest(cls: type) -> str:
    """Hash the code of a plug-in class to 16 hexadecimal digits.

    The digest covers the file of the class, or every .py file of its package, and the code of an attack's components.
    """
    path = Path(str(sys.modules[cls.__module__].__file__))
    package = path.parent if (path.parent / "__init__.py").exists() and path.parent.name != "src" else None
    own_package = package is not None and package.name not in KINDS.values()
    files = sorted(package.rglob("*.py")) if own_package and package else [path]
    parts = [source_digest(file.read_text()) for file in files]
    parts += [code_digest(load_attack(name)) for name in getattr(cls, "component_names", ())]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


@cache
def source_digest(source: str) -> str:
    """Hash the syntax tree of a Python file without docstrings and imports; equal in Python 3.11 to 3.13."""
    return hashlib.sha256("\x1f".join(_tokens(ast.parse(source))).encode()).hexdigest()


def _tokens(node: object) -> Iterator[str]:
    """Yield node types, field names and plain values of a syntax tree, in order."""
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
            if isinstance(node, ast.JoinedStr):  # Python 3.12 adds empty strings to nested format specs
                value = [part for part in value if not (isinstance(part, ast.Constant) and part.value == "")]
            if value is not None and value != []:  # newer Python versions have more empty fields
                yield name
                yield from _tokens(value)
    else:
        yield repr(node)
