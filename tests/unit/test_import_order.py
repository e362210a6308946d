"""The order of the folders: imports go one way and are not circular; plug-ins import `robobench.api` only."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import robobench
from robobench.plugins.discovery import FOLDERS, KINDS, builtin_folder, discover

ROOT = Path(robobench.__file__).parent

# Folders and modules of robobench/. Each may import itself and what stands before it.
ORDER = (
    *("errors", "core"),
    *("data", "models", "plugins", "distributed"),
    *("attack_engine", "store"),
    *("training", "results"),
    *("evaluation", "planning", "execution", "report"),
    *("api", "testing"),  # for plug-ins: re-exports, and checks of a plug-in
    "trackers",  # plug-ins inside the package
    *("in_memory", "interface", "__init__", "compat", "paper", "cli", "__main__"),
)
FILES = sorted(path for path in ROOT.rglob("*.py"))
PLUGINS = [(kind, path) for kind in FOLDERS for path in sorted(builtin_folder(kind).rglob("*.py"))]
MODULES = {".".join(("robobench", *path.relative_to(ROOT).with_suffix("").parts)): path for path in FILES}
MODULES |= {name.removesuffix(".__init__"): path for name, path in MODULES.items() if name.endswith(".__init__")}


def imported_modules(path: Path) -> set[str]:
    """Return the names of all modules that a file imports anywhere: at its top, inside functions, for type checkers."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                assert node.level == 1 and path.parent.parent.name in KINDS.values(), f"{path} imports a neighbor"
                continue
            names |= {full if (full := f"{base}.{alias.name}") in MODULES else base for alias in node.names}
    return names


def part_of(module: str) -> str:
    """Return the folder or module of robobench/ that a module is in."""
    return module.split(".")[1] if "." in module else "__init__"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_order(path):
    own = part_of(".".join(("robobench", *path.relative_to(ROOT).with_suffix("").parts)))
    allowed = ORDER[: ORDER.index(own) + 1]
    for name in imported_modules(path):
        if name.split(".")[0] == "robobench":
            assert part_of(name) in allowed, f"{own} imports {name}, which comes later in the order"


def test_no_import_is_circular():
    arrows = {name: imported_modules(path) & MODULES.keys() for name, path in MODULES.items()}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, f"circular import: {' -> '.join((*way[way.index(name) :], name))}"
        if name not in done:
            for other in arrows[name]:
                visit(other, (*way, name))
            done.add(name)

    for name in arrows:
        visit(name, ())


@pytest.mark.parametrize(("kind", "path"), PLUGINS, ids=[f"{path.parent.name}/{path.name}" for _, path in PLUGINS])
def test_plugins_import_only_the_api(kind, path):
    top = builtin_folder(kind)
    package = path.relative_to(top).parts[0] if path.parent != top else None
    for name in imported_modules(path):
        head, *rest = name.split(".")
        if head == "robobench":
            own = package is not None and rest[:2] == [KINDS[kind], package]
            assert own or rest == ["api"], f"{path.name} imports {name}"
        elif head in ("attacks", "defenses"):
            pytest.fail(f"{path.name} imports {name} without its package")


def test_core_names_no_plugin():
    # Words that are names of plug-ins too, where they mean something else; and the defaults of a request.
    other_meanings = {
        "planning/request.py": {"standard", "pgd", "fgsm"},  # defaults
        "paper/published.py": {"standard"},
        "execution/training_job.py": {"pgd"},  # a key of TeacherTiming
        "cli/list_.py": {"pyautoattack"},  # the package
        "cli/env.py": {"pyautoattack"},
        "models/robustbench_zoo.py": {"autoattack", "pyautoattack"},  # packages
        "data/views.py": {"jitter"},  # a draw
        "cli/distances.py": {"fmn"},  # the default, as in_memory.py's
        "in_memory.py": {"autoattack", "fmn", "fgsm", "pgd", "apgd-t"},  # defaults; RobustBench's benchmark
    }
    names = {name for kind in KINDS for name in discover(kind)} - {"transfer"}  # a protocol's name
    for path in FILES:
        place = str(path.relative_to(ROOT))
        if place.startswith("compat/"):  # maps the names of other libraries to attacks
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in names:
                preset = place in ("planning/presets.py", "planning/recipes.py")
                allowed = preset or node.value in other_meanings.get(place, ())
                assert allowed, f"{place}:{node.lineno} names the plug-in '{node.value}'"
