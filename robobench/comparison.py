"""Paired differences between trained networks, and spread over seeds, as tables for people."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from robobench.statistics import Column, pairs, spreads
from robobench.threat import eps_text

PAIRS = (
    "About these trained networks, image by image (exact McNemar, p Holm-corrected over a column). "
    "A claim about methods needs several seeds (--seeds 0,1,2)."
)


def head(column: Column) -> str:
    """Name an attacked column over three lines."""
    return f"{column[0]}\n{column[1]}\n{eps_text(column[2])}"


def show(records: list[dict[str, Any]], console: Console, baseline: str | None) -> None:
    """Print the paired differences to a baseline where there is one, and mean and spread over several seeds."""
    found = pairs(records, baseline) if baseline else []
    if found:
        cells = {(p.network, p.baseline, p.column): f"{100 * p.difference:+.1f}\np {p.p:.2g}" for p in found}
        title = f"white-box, % of {found[0].examples} images, difference to the baseline"
        table = _grid(title, PAIRS, {f"{n} - {b}": (n, b) for n, b, _ in cells}, [p.column for p in found], cells)
        console.print(table)
    seeds = spreads(records)
    if seeds:
        spread = {
            (s.defense, s.column): f"{100 * s.mean:.1f}\n± {100 * s.deviation:.1f} (n={len(s.values)})" for s in seeds
        }
        title, note = "white-box accuracy over seeds, %", "Mean ± standard deviation over n trainings."
        console.print(_grid(title, note, {d: (d,) for d, _ in spread}, [s.column for s in seeds], spread))


def _grid(
    title: str, note: str, lines: dict[str, tuple[str, ...]], columns: list[Column], cells: dict[Any, str]
) -> Table:
    """Lay cells out, a line a name and a column an attack; what was not measured is a dash."""
    out = Table(title=title, caption=note, box=box.SIMPLE_HEAD, title_justify="left", caption_justify="left")
    out.add_column("defense", no_wrap=True)
    for column in dict.fromkeys(columns):
        out.add_column(head(column), justify="right")
    for name, key in lines.items():
        out.add_row(name, *(cells.get((*key, column), "-") for column in dict.fromkeys(columns)))
    return out
