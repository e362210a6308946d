"""Tables of paired differences between trained models and of the spread over seeds."""

from __future__ import annotations

import pandas as pd
from rich.console import Console

from robobench.report.formatting import MISSING, format_threat
from robobench.report.matrix import render_matrix, split_columns
from robobench.results.records import EvaluationRecord
from robobench.results.statistics import Column, PairedDifference, paired_differences, seed_stats

PAIRED_NOTE = (
    "In brackets: p-value of the exact McNemar test on the same images, Holm-corrected over {over}.\n"
    "This compares trained models. To compare methods, use several seeds (--seeds 0,1,2)."
)


def print_comparison(
    records: list[EvaluationRecord], console: Console, baseline: str | None, more_title: str = ""
) -> None:
    """Print paired differences to a baseline if one is given, and mean and spread if there are several seeds."""
    print_differences(paired_differences(records, baseline) if baseline else [], console, more_title)
    seeds = seed_stats(records)
    if seeds:
        cells = [(s.defense, s.column, f"{100 * s.mean:.1f} ± {100 * s.deviation:.1f}") for s in seeds]
        counts = ", ".join(sorted({str(len(s.values)) for s in seeds}))
        note = f"Mean ± standard deviation over {counts} trainings."
        _print_table(cells, f"accuracy over seeds, clean and white-box, %{more_title}", note, console)


def print_differences(
    differences: list[PairedDifference], console: Console, more_title: str = "", over: str = "a column"
) -> None:
    """Print paired differences, if there are any.

    Args:
        over: what the p-values were corrected over.
    """
    if differences:
        images = differences[0].examples
        title = f"white-box accuracy minus baseline, percentage points (p-value), {images} images{more_title}"
        cells = [(f"{d.model} - {d.baseline}", d.column, f"{100 * d.difference:+.1f} ({d.p:.2g})") for d in differences]
        _print_table(cells, title, PAIRED_NOTE.format(over=over), console)


def _print_table(cells: list[tuple[str, Column, str]], title: str, note: str, console: Console) -> None:
    """Print (name, column, text) cells as a table, split to the width of the terminal."""
    lines: dict[str, dict[str, str]] = {}
    for name, (attack, norm, eps), text in cells:
        lines.setdefault(name, {})[f"{attack} {format_threat(norm, eps)}" if norm else attack] = text
    table = pd.DataFrame.from_dict(lines, orient="index").fillna(MISSING)
    table.index.name = "defense"
    parts = split_columns(table, console.width)
    for number, part in enumerate(parts):
        console.print(render_matrix(part, "" if number else title, note if number == len(parts) - 1 else ""))
        console.print()
