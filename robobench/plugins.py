"""Finds defenses and attacks and imports the ones asked for; names none of them.

Three places: robobench's own folders, entry points of installed packages (groups `robobench.defenses` and
`robobench.attacks`), and files the user named. Looking reads source text and metadata only; nothing is imported,
so `robobench list` needs no torch, and a broken plug-in stops only the run that asked for it.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import os
import sys
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoints, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robobench.errors import PluginError, RequestError
from robobench.registry import Registry, unknown

if TYPE_CHECKING:
    from robobench.api import Attack, Defense

KINDS = {"defense": "defenses", "attack": "attacks"}  # kind -> folder, entry-point group, registry
_files: dict[str, Path] = {}  # module name -> file the user named with --plugin


@dataclass(frozen=True)
class Plugin:
    """A plug-in as seen from outside: no import has happened."""

    kind: str  # "defense" or "attack"
    name: str
    summary: str
    module: str
    origin: str  # "robobench", the distribution's name, or the file's path


def folder(kind: str) -> Path:
    """Return the folder of robobench's own plug-ins of a kind."""
    spec = importlib.util.find_spec(f"robobench.{KINDS[kind]}")
    assert spec is not None and spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations)))


@cache
def _registered(source: str) -> list[tuple[str, str, str]]:
    """Read (kind, name, summary) of every class under `@DEFENSES.register` or `@ATTACKS.register`."""
    found = []
    for node in ast.parse(source).body:
        for mark in getattr(node, "decorator_list", []):
            match mark:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id=registry) | ast.Attribute(attr=registry), attr="register"),
                    args=[ast.Constant(value=str(name))],
                ) if registry in ("DEFENSES", "ATTACKS"):
                    kind = "defense" if registry == "DEFENSES" else "attack"
                    summary = (ast.get_docstring(node) or "").split("\n")[0]  # type: ignore[arg-type]
                    found.append((kind, name, summary))
    return found


def add_file(path: str | Path) -> None:
    """Make the plug-ins of a file known (`--plugin FILE`); its names are read, nothing runs yet.

    Raises:
        RequestError: no such file, or no class in it registers with DEFENSES or ATTACKS.
        PluginError: the file is not Python.
    """
    if not os.path.isfile(path):  # Path.is_file raises where a name holds a null character
        raise RequestError(f"no plug-in file '{path}'; give the path of a .py file")
    file = Path(path).resolve()
    try:
        names = _registered(file.read_text())
    except (SyntaxError, UnicodeDecodeError) as err:
        raise PluginError(f"plug-in '{path}' is not valid Python: {err}") from None
    if not names:
        raise RequestError(
            f"plug-in '{path}' registers nothing; decorate a class with @DEFENSES.register(\"name\") "
            'or @ATTACKS.register("name")'
        )
    tag = hashlib.sha256(str(file).encode()).hexdigest()[:8]
    _files[f"robobench_plugin_{file.stem}_{tag}"] = file


@cache
def _entry_points(group: str, path: tuple[str, ...]) -> EntryPoints:
    """Read what installed packages bring; asked often, and slow where there are many of them."""
    return entry_points(group=group)


def found(kind: str) -> dict[str, Plugin]:
    """Return every plug-in of a kind that can be seen, by name, without importing any."""
    plugins: dict[str, Plugin] = {}

    def see(plugin: Plugin) -> None:
        other = plugins.get(plugin.name)
        if other is not None and other.module != plugin.module:
            raise RequestError(
                f"{kind} '{plugin.name}' is already registered by {other.module}; rename the one in {plugin.module}"
            )
        plugins[plugin.name] = plugin

    for path in sorted(folder(kind).iterdir()):
        source = path / "__init__.py" if path.is_dir() else path
        if source.suffix == ".py" and source.is_file():
            module = f"robobench.{KINDS[kind]}.{path.stem}"
            try:
                registered = _registered(source.read_text())
            except SyntaxError as err:  # one broken file must not hide the others; loading it says why
                registered = [(kind, path.stem, f"not valid Python: {err.msg}, line {err.lineno}")]
            for k, name, summary in registered:
                if k == kind:
                    see(Plugin(kind, name, summary, module, "robobench"))
    for entry in _entry_points(f"robobench.{KINDS[kind]}", tuple(sys.path)):
        origin = entry.dist.name if entry.dist else "an installed package"
        summary = str(entry.dist.metadata["Summary"] or "") if entry.dist else ""
        see(Plugin(kind, entry.name, summary, entry.module, origin))
    for module, file in _files.items():
        for k, name, summary in _registered(file.read_text()):
            if k == kind:
                see(Plugin(kind, name, summary, module, str(file)))
    return plugins


def import_file(name: str, file: Path) -> Any:
    """Run a file as a module of that name, under which dataclasses and pickle find it; one that fails is forgotten."""
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _import(module: str) -> Any:
    """Import a plug-in's module; the reason it failed becomes one line."""
    if module in sys.modules:
        return sys.modules[module]
    try:
        return import_file(module, _files[module]) if module in _files else importlib.import_module(module)
    except Exception as err:
        reason = " ".join(str(err).split()) or type(err).__name__
        raise PluginError(
            f"plug-in module '{module}' fails to import: {type(err).__name__}: {reason}; "
            "mend it or leave its names out of the run"
        ) from err


def load(kind: str, name: str) -> Any:
    """Import the module behind a name and return its registered class.

    Raises:
        RequestError: no plug-in has that name (with a suggestion).
        PluginError: its module fails to import, or registers another name.
    """
    from robobench import api

    plugins = found(kind)
    if name not in plugins:
        raise unknown(kind, name, plugins)
    _import(plugins[name].module)
    registry: Registry[Any] = api.DEFENSES if kind == "defense" else api.ATTACKS
    if name not in registry:
        raise PluginError(f"module '{plugins[name].module}' did not register {kind} '{name}'")
    return registry.get(name)


def load_defense(name: str) -> type[Defense]:
    """Import and return a defense by name."""
    return load("defense", name)  # type: ignore[no-any-return]


def load_attack(name: str) -> type[Attack]:
    """Import and return an attack by name."""
    return load("attack", name)  # type: ignore[no-any-return]


def attack_and_values(text: str) -> tuple[type[Attack], dict[str, str]]:
    """Read 'NAME' or, for an attack that takes one, 'NAME:ARGUMENT'; return the class and what the text sets.

    Raises:
        RequestError: no such attack, an argument it does not take, or none where it needs one.
    """
    name, colon, argument = text.partition(":")
    cls = load_attack(name)
    if bool(colon and argument) != (cls.argument is not None):
        form = f"write {name}:{cls.argument.upper()}" if cls.argument else f"write '{name}' alone"
        raise RequestError(f"attack '{text}': {form}")
    return cls, {cls.argument: argument} if cls.argument else {}


def load_module(module: str) -> list[tuple[str, str]]:
    """Import a stranger's module by dotted name or path; return the (kind, name) pairs it registers."""
    if module.endswith(".py"):
        add_file(module)
        path = Path(module).resolve()
        dotted = next(name for name, file in _files.items() if file == path)
    else:
        dotted = module
    loaded = _import(dotted)
    from robobench import api

    tables: dict[str, Registry[Any]] = {"defense": api.DEFENSES, "attack": api.ATTACKS}
    prefix = loaded.__name__
    return [
        (kind, name)
        for kind, table in tables.items()
        for name in table
        if table.get(name).__module__ == prefix or table.get(name).__module__.startswith(prefix + ".")
    ]


def digest(cls: type) -> str:
    """Hash the source of a plug-in: its file or every .py file of its package, and those of what it `uses`."""
    path = Path(str(sys.modules[cls.__module__].__file__))
    package = path.parent if (path.parent / "__init__.py").exists() and path.parent.name != "src" else None
    own_package = package is not None and package.name not in KINDS.values()
    files = sorted(package.rglob("*.py")) if own_package and package else [path]
    parts = [f.read_bytes() for f in files] + [digest(load_attack(name)).encode() for name in getattr(cls, "uses", ())]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
