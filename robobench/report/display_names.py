"""Names for printed tables: `trades` is TRADES, `fast-at` is Fast-AT, `pgd` with 20 steps is PGD-20."""

from __future__ import annotations

import ast
import importlib.util
import re
from functools import cache
from pathlib import Path

from robobench.plugins.discovery import discover

ACRONYM_LENGTH = 3  # a part of a name as short as this is written in capitals


@cache
def display_name(kind: str, name: str) -> str:
    """Return the name of a method as its file writes it before a colon ('TRADES: ...'), else its own name capitalized.

    Args:
        kind: "defense" or "attack".
        name: of a registered method, or any other name, which is returned unchanged if it has a colon.
    """
    plugin = discover(kind).get(name)
    spec = importlib.util.find_spec(plugin.module) if plugin and plugin.origin == "robobench" else None
    if spec is None or spec.origin is None:
        return name
    line = (ast.get_docstring(ast.parse(Path(spec.origin).read_text())) or "").split("\n")[0]
    for word in re.findall(r"(?:^|\. )([A-Z][\w-]*):", line):  # a file may register several methods
        if word.replace("-", "").lower() == name.replace("-", "").lower():
            return str(word)
    return "-".join(part.upper() if len(part) <= ACRONYM_LENGTH else part.capitalize() for part in name.split("-"))


def display_attacks(budgets: str, separator: str) -> str:
    """Return 'FGSM, PGD-20' for 'fgsm: fixed; pgd: steps=20, restarts=1'."""
    out = []
    for part in budgets.split(separator):
        name, _, budget = part.partition(": ")
        steps = re.search(r"\bsteps=(\d+)", budget)
        out.append(display_name("attack", name) + (f"-{steps[1]}" if steps else ""))
    return ", ".join(dict.fromkeys(out))


def display_model(label: str) -> str:
    """Return a model's label with the display name of its defense: 'Standard (control, seed 1)'."""
    name, space, rest = label.partition(" (")
    return display_name("defense", name) + space + rest
