"""Paired differences between trained networks, and spread over seeds, as tables for people."""

from __future__ import annotations

import pandas as pd
from rich.console import Console

from robobench.report.formatting import MISSING, point
from robobench.report.matrix import blocks, stacked
from robobench.results.records import EvaluationRecord
from robobench.results.statistics import Column, paired_differences, seed_stats

PAIRS = (
    "In brackets: exact McNemar on the same images, Holm-corrected over a column.\n"
    "About these trained networks; claims about methods need several seeds (--seeds 0,1,2)."
)


def show(records: list[EvaluationRecord], console: Console, baseline: str | None) -> None:
    """Print the paired differences to a baseline where there is one, and mean and spread over several seeds."""
    found = paired_differences(records, baseline) if baseline else []
    if found:
        title = f"white-box, points of {found[0].examples} images above the baseline (p)"
        cells = [(f"{p.model} - {p.baseline}", p.column, f"{100 * p.difference:+.1f} ({p.p:.2g})") for p in found]
        _print(cells, title, PAIRS, console)
    seeds = seed_stats(records)
    if seeds:
        spread = [(s.defense, s.column, f"{100 * s.mean:.1f} ± {100 * s.deviation:.1f}") for s in seeds]
        counts = ", ".join(sorted({str(len(s.values)) for s in seeds}))
        note = f"Mean ± standard deviation over {counts} trainings."
        _print(spread, "accuracy over seeds, clean and white-box, %", note, console)


def _print(cells: list[tuple[str, Column, str]], title: str, note: str, console: Console) -> None:
    """Print a line a name and a column an attack, cut to the width of the terminal; what was not measured is a dash."""
    lines: dict[str, dict[str, str]] = {}
    for name, (attack, norm, eps), text in cells:
        lines.setdefault(name, {})[f"{attack} {point(norm, eps)}" if norm else attack] = text
    table = pd.DataFrame.from_dict(lines, orient="index").fillna(MISSING)
    table.index.name = "defense"
    parts = blocks(table, console.width)
    for number, part in enumerate(parts):
        console.print(stacked(part, "" if number else title, note if number == len(parts) - 1 else ""))
        console.print()
