"""Networks by a user's function, FILE.py:FUNCTION or package.module:FUNCTION: what stands behind it, and calling it."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from robobench.core.imports import import_file
from robobench.core.registry import unknown_name
from robobench.errors import RequestError, one_line

if TYPE_CHECKING:
    from torch import nn


def source_file(name: str) -> Path:
    """Return the file behind FILE.py:FUNCTION or package.module:FUNCTION, without running it.

    Raises:
        RequestError: no such file or module.
    """
    where, _, function = name.rpartition(":")
    if where.endswith(".py"):
        if not Path(where).is_file():
            raise RequestError(f"no file '{where}' for model '{name}'; write FILE.py:FUNCTION")
        return Path(where).resolve()
    if not re.fullmatch(r"[\w.]+", where):
        raise RequestError(f"unknown model '{name}'; write package.module:{function or 'FUNCTION'} or FILE.py:FUNCTION")
    try:
        with _importing_from(Path.cwd()):
            found = importlib.util.find_spec(where)
    except (ImportError, ValueError):
        found = None
    if found is None or not found.origin or not Path(found.origin).is_file():
        raise RequestError(
            f"no module '{where}' for model '{name}'; write package.module:{function} or FILE.py:{function}"
        )
    return Path(found.origin)


def read_sources(name: str) -> list[bytes]:
    """Read the file behind a factory, then every local file that it imports at any depth; nothing is run.

    Local is what lies below the folder that its imports start from: of FILE.py its own, of package.module the one the
    package lies in; of an installed package the package alone.
    """
    where, file = name.rpartition(":")[0], source_file(name)
    root, start, own = file.parent, [file], ""
    if not where.endswith(".py"):
        root = file.parents[where.count(".") + (file.name == "__init__.py")]
        start, own = [*_modules(root, where), file], where.partition(".")[0]
    installed = root.name in ("site-packages", "dist-packages")
    texts: dict[Path, bytes] = {}
    while start:
        path = start.pop()
        if path not in texts:
            again = path == file and where.endswith(".py")  # runs whenever it is built; Python imports others once
            texts[path] = path.read_bytes() if again else _read_once(path)
            for base, module in _imports(path, texts[path], root):
                if base != root or not installed or module.partition(".")[0] == own:
                    start += _modules(base, module)
    return [texts.pop(file), *(texts[path] for path in sorted(texts))]


@cache
def _read_once(path: Path) -> bytes:
    return path.read_bytes()


def _modules(base: Path, name: str) -> Iterator[Path]:
    """Find the files that importing a dotted name from a folder may run."""
    for part in name.split("."):
        base = base / part
        yield from (path for path in (base.parent / f"{part}.py", base / "__init__.py") if path.is_file())


def _imports(path: Path, text: bytes, root: Path) -> Iterator[tuple[Path, str]]:
    """Find what a file imports: dotted names, and the folders that they start from."""
    try:
        nodes = list(ast.walk(ast.parse(text)))
    except (SyntaxError, ValueError):  # nothing imports it with success
        return
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((root, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = path.parents[node.level - 1] if node.level else root
            yield from ((base, f"{node.module or ''}.{alias.name}".lstrip(".")) for alias in node.names)


def build_user_model(name: str, num_classes: int) -> nn.Module:
    """Import the user's function and call it with the number of classes; what fails becomes one line."""
    from torch import nn

    where, _, function = name.rpartition(":")
    file = source_file(name)
    try:
        if where.endswith(".py"):
            tag = f"robobench_model_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
            with _importing_from(file.parent):
                module = import_file(tag, file)
        else:
            with _importing_from(Path.cwd()):
                module = importlib.import_module(where)
    except Exception as err:
        raise RequestError(f"model '{name}' fails to import: {one_line(err)}") from err
    make = getattr(module, function, None)
    if not callable(make):
        names = sorted(n for n, v in vars(module).items() if callable(v) and not n.startswith("_"))
        raise unknown_name(f"function in {where}", function, names)
    try:
        net = make(num_classes)
    except Exception as err:
        raise RequestError(f"model '{name}' fails: {function}({num_classes}) raised {one_line(err)}") from err
    if not isinstance(net, nn.Module):
        raise RequestError(f"model '{name}' must return an nn.Module, got {type(net).__name__}")
    return net


@contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    """Let imports see a folder first, as `python FILE.py` would."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
