"""Find and import defenses and attacks.

They come from three places: robobench's own folders, entry points of installed packages (groups `robobench.defenses`
and `robobench.attacks`), and files given with `--plugin`. Discovery reads source text and metadata and imports nothing.
Therefore `robobench list` needs no torch, and a broken plug-in affects only runs that use it.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoints, entry_points
from pathlib import Path
from typing import Any

from robobench.core.imports import EXTRAS, import_file, install_hint
from robobench.core.registry import ATTACKS, DEFENSES, TRACKERS, library_name, unknown_name
from robobench.errors import PluginError, RequestError

KINDS = {"defense": "defenses", "attack": "attacks"}  # kind -> folder, entry-point group, registry
FOLDERS = {**KINDS, "tracker": "trackers"}
REGISTRIES = {"defense": DEFENSES, "attack": ATTACKS, "tracker": TRACKERS}

_plugin_files: dict[str, Path] = {}  # module name -> file given with --plugin


@dataclass(frozen=True)
class Plugin:
    """A plug-in found by `discover`, not imported yet."""

    kind: str  # "defense", "attack" or "tracker"
    name: str
    summary: str
    module: str
    origin: str  # "robobench", the distribution's name, or the file's path
    card: Mapping[str, str] = field(default_factory=dict)  # lines "Family:" and "Cost:" of its file's docstring
    requires: tuple[str, ...] = ()  # defenses that must be trained first, if the class says so in a literal
    library: str | None = None  # the package whose class it adapts, with all others of the package


def builtin_folder(kind: str) -> Path:
    """Return the folder of robobench's own defenses, attacks or trackers."""
    spec = importlib.util.find_spec(f"robobench.{FOLDERS[kind]}")
    assert spec is not None and spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations)))


@dataclass(frozen=True)
class _Registration:
    """What a file's text says of a class that it registers, or of a library whose classes it adapts."""

    kind: str
    name: str  # of the library if `is_library`
    summary: str
    card: Mapping[str, str] = field(default_factory=dict)
    requires: tuple[str, ...] = ()
    is_library: bool = False


@cache
def _find_registrations(source: str) -> list[_Registration]:
    """Return what is decorated with `register` or `register_library` of DEFENSES, ATTACKS or TRACKERS."""
    registrations = []
    tree = ast.parse(source)
    card = dict(re.findall(r"^(Family|Cost):\s+(.+)$", ast.get_docstring(tree) or "", re.MULTILINE))
    for node in tree.body:
        for decorator in getattr(node, "decorator_list", []):
            match decorator:
                case ast.Call(
                    func=ast.Attribute(
                        value=ast.Name(id=registry) | ast.Attribute(attr=registry),
                        attr="register" | "register_library" as how,
                    ),
                    args=[ast.Constant(value=str(name))],
                ) if registry in ("DEFENSES", "ATTACKS", "TRACKERS"):
                    kind = registry[:-1].lower()
                    summary = (ast.get_docstring(node) or "").split("\n")[0]  # type: ignore[arg-type]
                    of_library = how == "register_library"
                    registrations.append(_Registration(kind, name, summary, card, _required(node), of_library))
    return registrations


@cache
def _read_registrations(file: Path, changed: int) -> list[_Registration]:
    """Return the registrations of a file. It is read again when it has changed."""
    return _find_registrations(file.read_text())


def _required(node: ast.stmt) -> tuple[str, ...]:
    """Return the values of a class's `requires = {role: defense}`."""
    for line in getattr(node, "body", []):
        match line:
            case ast.Assign(targets=[ast.Name(id="requires")], value=ast.Dict(values=values)):
                return tuple(str(value.value) for value in values if isinstance(value, ast.Constant))
    return ()


@cache
def library_classes(package: str) -> dict[str, str]:
    """Return the plug-in names of the classes in a package's `__all__`, and what each is; {} if it is not installed.

    Nothing is imported: names and first lines of docstrings are read from the files.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return {}
    classes, modules = list[str](), dict[str, str]()
    for node in ast.parse(Path(spec.origin).read_text()).body:
        match node:
            case ast.Assign(targets=[ast.Name(id="__all__")], value=value):
                classes = ast.literal_eval(value)
            case ast.ImportFrom(module=str(module), names=names, level=1):
                modules |= {alias.name: module for alias in names}
    out = {}
    for name in classes:
        file = Path(spec.origin).parent.joinpath(*modules.get(name, "").split(".")).with_suffix(".py")
        text = file.read_text() if file.is_file() else ""
        about = re.search(rf'^class {name}\b.*:\s+r?"""\s*(.+)', text, re.MULTILINE)
        out[library_name(package, name)] = f"{package}.{name}" + (f": {about[1].strip()}" if about else "")
    return out


def add_plugin_file(path: str | Path) -> None:
    """Add the plug-ins of a file (`--plugin FILE`). The file is parsed, not run.

    Raises:
        RequestError: the file does not exist, or no class in it registers with DEFENSES or ATTACKS.
        PluginError: the file is not valid Python.
    """
    if not os.path.isfile(path):  # Path.is_file raises for a name with a null character
        raise RequestError(f"no plug-in file '{path}'; give the path of a .py file")
    file = Path(path).resolve()
    try:
        names = _find_registrations(file.read_text())
    except (SyntaxError, UnicodeDecodeError) as err:
        raise PluginError(f"plug-in '{path}' is not valid Python: {err}") from None
    if not names:
        raise RequestError(
            f"plug-in '{path}' registers nothing; decorate a class with @DEFENSES.register(\"name\") "
            'or @ATTACKS.register("name")'
        )
    tag = hashlib.sha256(str(file).encode()).hexdigest()[:8]
    _plugin_files[f"robobench_plugin_{file.stem}_{tag}"] = file


@cache
def _entry_points(group: str, path: tuple[str, ...]) -> EntryPoints:
    """Return the entry points of installed packages. Cached, because it is slow with many packages."""
    return entry_points(group=group)


def discover(kind: str) -> dict[str, Plugin]:
    """Return all plug-ins of a kind ("defense", "attack" or "tracker") by name, without importing them.

    Raises:
        RequestError: two plug-ins have the same name.
    """
    plugins: dict[str, Plugin] = {}
    of_libraries: dict[str, Plugin] = {}

    def add_all(registrations: list[_Registration], module: str, origin: str) -> None:
        for r in registrations:
            if r.kind == kind and r.is_library:
                for name, summary in library_classes(r.name).items():
                    of_libraries[name] = Plugin(kind, name, summary, module, r.name, library=r.name)
            elif r.kind == kind:
                add(Plugin(kind, r.name, r.summary, module, origin, r.card, r.requires))

    def add(plugin: Plugin) -> None:
        other = plugins.get(plugin.name)
        if other is not None and other.module != plugin.module:
            raise RequestError(
                f"{kind} '{plugin.name}' is already registered by {other.module}; rename the one in {plugin.module}"
            )
        plugins[plugin.name] = plugin

    for path in sorted(builtin_folder(kind).iterdir()):
        source = path / "__init__.py" if path.is_dir() else path
        if source.suffix == ".py" and source.is_file():
            module = f"robobench.{FOLDERS[kind]}.{path.stem}"
            try:
                registered = _read_registrations(source, source.stat().st_mtime_ns)
            except SyntaxError as err:  # a broken file must not hide the others; loading it raises
                registered = [_Registration(kind, path.stem, f"not valid Python: {err.msg}, line {err.lineno}")]
            add_all(registered, module, "robobench")
    for entry in _entry_points(f"robobench.{FOLDERS[kind]}", tuple(sys.path)):
        origin = entry.dist.name if entry.dist else "an installed package"
        summary = str(entry.dist.metadata["Summary"] or "") if entry.dist else ""
        add(Plugin(kind, entry.name, summary, entry.module, origin))
    for module, file in _plugin_files.items():
        add_all(_find_registrations(file.read_text()), module, str(file))
    return of_libraries | plugins


def _import_module(module: str) -> Any:
    """Import a plug-in's module; raise PluginError with a one-line reason if that fails."""
    if module in sys.modules:
        return sys.modules[module]
    try:
        return (
            import_file(module, _plugin_files[module]) if module in _plugin_files else importlib.import_module(module)
        )
    except Exception as err:
        if isinstance(err, ModuleNotFoundError) and err.name in EXTRAS:
            raise PluginError(
                f"plug-in module '{module}' needs the package {err.name}; {install_hint(err.name)}, or leave its names "
                "out of the run"
            ) from err
        reason = " ".join(str(err).split()) or type(err).__name__
        raise PluginError(
            f"plug-in module '{module}' fails to import: {type(err).__name__}: {reason}; "
            "fix it or leave its names out of the run"
        ) from err


def load_plugin(kind: str, name: str) -> Any:
    """Import the module of a plug-in and return its registered class.

    Raises:
        RequestError: no plug-in has that name; the message suggests a similar one.
        PluginError: its module fails to import or does not register that name.
    """
    plugins = discover(kind)
    if name not in plugins:
        raise unknown_name(kind, name, plugins)
    _import_module(plugins[name].module)
    registry = REGISTRIES[kind]
    if name not in registry:
        raise PluginError(f"module '{plugins[name].module}' did not register {kind} '{name}'")
    return registry.get(name)


def check_installed(kind: str, name: str) -> None:
    """Raise RequestError unless the package that a plug-in `requires` is installed."""
    package = load_plugin(kind, name).requires
    if package and getattr(importlib.util.find_spec(package), "origin", None) is None:
        raise RequestError(f"{kind} '{name}' needs the package {package}; {install_hint(package)}")


def load_defense(name: str) -> Any:
    """Import and return a defense by name."""
    return load_plugin("defense", name)


def load_attack(name: str) -> Any:
    """Import and return an attack by name."""
    return load_plugin("attack", name)


def parse_attack_spec(text: str) -> tuple[Any, dict[str, str]]:
    """Parse 'NAME' or 'NAME:VALUE'; return the attack class and the config values given by the text.

    Raises:
        RequestError: unknown attack, a missing value, or a value for an attack that takes none.
    """
    name, colon, argument = text.partition(":")
    cls = load_attack(name)
    if bool(colon and argument) != (cls.spec_field is not None):
        form = f"write {name}:{cls.spec_field.upper()}" if cls.spec_field else f"write '{name}' alone"
        raise RequestError(f"attack '{text}': {form}")
    return cls, {cls.spec_field: argument} if cls.spec_field else {}


def load_plugin_module(module: str) -> list[tuple[str, str]]:
    """Import a module by dotted name or path; return the (kind, name) pairs it registers."""
    if module.endswith(".py"):
        add_plugin_file(module)
        path = Path(module).resolve()
        dotted = next(name for name, file in _plugin_files.items() if file == path)
    else:
        dotted = module
    loaded = _import_module(dotted)
    tables = {"defense": DEFENSES, "attack": ATTACKS}
    return [
        (kind, name)
        for kind, table in tables.items()
        for name in table
        if f"{table.get(name).__module__}.".startswith(f"{loaded.__name__}.")
    ]
