"""User factories FILE.py:FUNCTION and package.module:FUNCTION: find, read and call the function that builds a model."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robobench.core.imports import import_file
from robobench.core.registry import unknown_name
from robobench.errors import RequestError, one_line

if TYPE_CHECKING:
    from torch import nn


# Names of a factory's parameter for the number of classes.
CLASS_PARAMETERS = (
    "num_classes",
    "n_classes",
    "classes",
    "num_class",
    "n_class",
    "nb_classes",
    "num_labels",
    "n_labels",
)


def find_source_file(name: str) -> Path:
    """Return the source file of FILE.py:FUNCTION or package.module:FUNCTION without importing it.

    Parent packages of a module are imported.

    Raises:
        RequestError: the file or module does not exist.
    """
    source, _, function = name.rpartition(":")
    if source.endswith(".py"):
        if not Path(source).is_file():
            raise RequestError(f"no file '{source}' for model '{name}'; write FILE.py:FUNCTION")
        return Path(source).resolve()
    if not re.fullmatch(r"[\w.]+", source):
        raise RequestError(f"unknown model '{name}'; write package.module:{function or 'FUNCTION'} or FILE.py:FUNCTION")
    try:
        with _importing_from(Path.cwd()):
            found = importlib.util.find_spec(source)
    except (ImportError, ValueError):
        found = None
    if found is None or not found.origin or not Path(found.origin).is_file():
        raise RequestError(
            f"no module '{source}' for model '{name}'; write package.module:{function} or FILE.py:{function}"
        )
    return Path(found.origin)


def read_sources(name: str) -> list[bytes]:
    """Read a factory's source file and all local files that it imports, directly or indirectly.

    Local files are below the import root: the folder of FILE.py, or the folder that contains the package. For an
    installed package, only the package itself is local.

    Returns:
        The source file first, then the others sorted by path.
    """
    source, file = name.rpartition(":")[0], find_source_file(name)
    root, pending, package = file.parent, [file], ""
    if not source.endswith(".py"):
        root = file.parents[source.count(".") + (file.name == "__init__.py")]
        pending, package = [*_module_files(root, source), file], source.partition(".")[0]
    installed = root.name in ("site-packages", "dist-packages")
    texts: dict[Path, bytes] = {}
    while pending:
        path = pending.pop()
        if path not in texts:
            reread = path == file and source.endswith(".py")  # executed on each build; Python imports the others once
            texts[path] = path.read_bytes() if reread else _read_once(path)
            for base, module in _find_imports(path, texts[path], root):
                if base != root or not installed or module.partition(".")[0] == package:
                    pending += _module_files(base, module)
    return [texts.pop(file), *(texts[path] for path in sorted(texts))]


@cache
def _read_once(path: Path) -> bytes:
    return path.read_bytes()


def _module_files(base: Path, name: str) -> Iterator[Path]:
    """Yield the files that importing a dotted name from a folder may execute."""
    for part in name.split("."):
        base = base / part
        yield from (path for path in (base.parent / f"{part}.py", base / "__init__.py") if path.is_file())


def _find_imports(path: Path, text: bytes, root: Path) -> Iterator[tuple[Path, str]]:
    """Yield what a file imports: (folder from which the name is resolved, dotted name)."""
    try:
        nodes = list(ast.walk(ast.parse(text)))
    except (SyntaxError, ValueError):  # cannot be imported
        return
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((root, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = path.parents[node.level - 1] if node.level else root
            yield from ((base, f"{node.module or ''}.{alias.name}".lstrip(".")) for alias in node.names)


def build_user_model(name: str, num_classes: int) -> nn.Module:
    """Import the user's function, and call it with the number of classes if it takes that.

    Raises:
        RequestError: the import or the call fails, or the result is not an nn.Module.
    """
    from torch import nn

    source, _, function = name.rpartition(":")
    file = find_source_file(name)
    try:
        if source.endswith(".py"):
            tag = f"robobench_model_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
            with _importing_from(file.parent):
                module = import_file(tag, file)
        else:
            with _importing_from(Path.cwd()):
                module = importlib.import_module(source)
    except Exception as err:
        raise RequestError(f"model '{name}' fails to import: {one_line(err)}") from err
    make = getattr(module, function, None)
    if not callable(make):
        names = sorted(n for n, v in vars(module).items() if callable(v) and not n.startswith("_"))
        raise unknown_name(f"function in {source}", function, names)
    call = _arguments(make, num_classes)
    try:
        with _importing_from(file.parent if source.endswith(".py") else Path.cwd()):  # it may import its neighbors
            net = _call_with_classes(make, call, num_classes)
    except Exception as err:
        shown = ", ".join([*map(str, call.args), *(f"{key}={value}" for key, value in call.kwargs.items())])
        raise RequestError(f"model '{name}' fails: {function}({shown}) raised {one_line(err)}") from err
    if not isinstance(net, nn.Module):
        raise RequestError(f"model '{name}' must return an nn.Module, got {type(net).__name__}")
    return net


def _call_with_classes(make: Callable[..., Any], call: inspect.BoundArguments, num_classes: int) -> Any:
    """Call a factory. One that takes any keyword gets num_classes, as torchvision's do, unless it refuses that."""
    passes_on = any(p.kind == p.VAR_KEYWORD for p in call.signature.parameters.values())
    if passes_on and not call.arguments:
        try:
            return make(num_classes=num_classes)
        except TypeError as err:
            if "num_classes" not in str(err):
                raise
    return make(*call.args, **call.kwargs)


def _arguments(make: Callable[..., Any], num_classes: int) -> inspect.BoundArguments:
    """Return the arguments to call a factory with.

    The number of classes goes to the parameter that is called so (CLASS_PARAMETERS), else to the only parameter without
    a default, else nowhere: a first parameter may just as well be a depth, or `pretrained`.
    """
    try:
        signature = inspect.signature(make)
    except ValueError:  # a builtin without a signature
        signature = inspect.Signature()
    parameters = list(signature.parameters.values())
    named = [p.name for p in parameters if p.name.lower() in CLASS_PARAMETERS and p.kind != p.VAR_KEYWORD]
    required = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    values = {named[0]: num_classes} if named else {required[0].name: num_classes} if len(required) == 1 else {}
    missing = [p.name for p in required if p.name not in values]
    call = signature.bind_partial()
    call.arguments.update(values)
    if missing:
        given = "the number of classes only" if named else "nothing that says which of them is the number of classes"
        raise RequestError(
            f"'{getattr(make, '__name__', 'the function')}{signature}' needs {', '.join(missing)}, and robobench has "
            f"{given}; write a function of num_classes that calls it"
        )
    return call


@contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    """Put a folder first on the import path, as `python FILE.py` does."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
