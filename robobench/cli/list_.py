"""`robobench list`: names to choose from, read from source text and metadata; torch is not imported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import typer

HELP = "List defenses, attacks, models, datasets or presets."
EPILOG = """
Examples:

  robobench list defenses

  robobench list attacks --check --plugin my_attack.py
"""


def main(
    what: Annotated[str, typer.Argument(help="defenses, attacks, models, datasets or presets.")],
    check: Annotated[
        bool, typer.Option("--check", help="Import each plug-in and show the error if that fails.")
    ] = False,
    plugin: Annotated[
        list[str] | None, typer.Option("--plugin", help="A .py file with your own defenses or attacks.")
    ] = None,
) -> int:
    """Print the list to stdout."""
    from robobench.core.registry import unknown_name

    tables: dict[str, Callable[[], Sequence[tuple[str, ...]]]] = {
        "defenses": lambda: _defenses(check, plugin or []),
        "attacks": lambda: _attacks(check, plugin or []),
        "models": _models,
        "datasets": _datasets,
        "presets": _presets,
    }
    if what not in tables:
        raise unknown_name("list", what, tables)
    lines = tables[what]()
    print_columns(lines)
    return int(check and any(cells[-1].startswith("cannot be imported") for cells in lines))


def print_columns(lines: Sequence[tuple[str, ...]]) -> None:
    """Print lines in columns; a line of one cell is a title and widens no column."""
    rows = [cells for cells in lines if len(cells) > 1]
    widths = [max(len(cells[i]) for cells in rows) for i in range(len(rows[0]))] if rows else []
    for cells in lines:
        padded = [f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)] if len(cells) > 1 else cells
        print("  ".join(padded).rstrip())


def _defenses(check: bool, files: list[str]) -> list[tuple[str, ...]]:
    """Return a title per family, and its methods by year: name, year, cost, requirements, summary."""
    from robobench.plugins.discovery import discover

    texts = dict(_plugins("defense", check, files))
    families: dict[str, list[tuple[str, ...]]] = {}
    for name, found in discover("defense").items():
        family, _, year = found.card.get("Family", "other").partition(", ")
        cells = (f"  {name}", year, found.card.get("Cost", ""), ", ".join(found.requires), texts[name])
        families.setdefault(family, []).append(cells)
    lines: list[tuple[str, ...]] = [("  name", "year", "passes per image (k inner steps)", "requires", "method")]
    for family in sorted(families, key=lambda name: (name == "other", name)):
        lines += [(family,), *sorted(families[family], key=lambda cells: (cells[1], cells[0]))]
    return lines


def _attacks(check: bool, files: list[str]) -> list[tuple[str, ...]]:
    """Return name and summary of every attack; those of other libraries last, under a title each."""
    from robobench.plugins.discovery import discover

    lines: list[tuple[str, ...]] = list(_plugins("attack", check, files))
    for library in sorted({found.library for found in discover("attack").values() if found.library}):
        group = [cells for cells in lines if cells[0].startswith(f"{library}-")]
        title = (f"every attack of {library}; its parameters: --set {group[0][0]}.NAME=VALUE",)
        lines = [cells for cells in lines if cells not in group] + [title, *group]
    return lines


def _plugins(kind: str, check: bool, files: list[str]) -> list[tuple[str, str]]:
    from robobench.errors import PluginError
    from robobench.plugins.discovery import add_plugin_file, discover, load_plugin

    for file in files:
        add_plugin_file(file)
    lines = []
    for name, found in sorted(discover(kind).items()):
        text = found.summary + (f" [{found.origin}]" if found.origin not in ("robobench", found.library) else "")
        if check:
            try:
                load_plugin(kind, name)
            except PluginError as err:
                text = f"cannot be imported: {err}"
        lines.append((name, text))
    return lines


def _models() -> list[tuple[str, str]]:
    from robobench.models.spec import MODELS

    return list(MODELS.items())


def _datasets() -> list[tuple[str, str]]:
    from robobench.data.info import DATASETS

    return [(name, info.summary) for name, info in DATASETS.items()]


def _presets() -> list[tuple[str, str]]:
    from robobench.planning.presets import LARGE_MODELS, PRESETS

    lines = []
    for name, preset in PRESETS.items():
        automatic = f"added to {name.split(':')[0]} automatically for {' and '.join(LARGE_MODELS)}"
        lines.append((name, preset.get("summary", automatic)))
        lines += [(f"  {what}", preset[what]) for what in ("published", "differs") if what in preset]
        sections = {key: preset.get(key, {}) for key in ("run", "training", "adversarial")}
        for section, values in (sections | preset.get("defenses", {})).items():
            lines += [(f"  {section}.{key}", str(value)) for key, value in values.items()]
    return lines
