"""Table of robust accuracy under the union of several threats."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from robobench.report.formatting import format_percent
from robobench.results.union import FACTS, VALUES

if TYPE_CHECKING:
    from rich.table import Table


def render_union(rows: pd.DataFrame) -> Table:
    """Render the rows of `union_rows` for a terminal; accuracies in percent."""
    from rich import box
    from rich.table import Table

    threats = [name for name in rows.columns if name not in (*FACTS, *VALUES)]
    title = "robust accuracy, %; union: images that are correct when clean and under every attack at all threats"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for name in ("model", "dataset", "images", "clean", *threats, "union", "95 % CI", "attacks"):
        table.add_column(name, justify="left" if name in ("model", "dataset", "attacks") else "right")
    for row in rows.to_dict("records"):
        name = f"{row['defense']} ({row['model']}, seed {row['seed']}"
        name += ")" if row["selection"] == "last" else f", {row['selection']})"
        missing = pd.isna(row["union_accuracy"])
        interval = "-" if missing else f"[{100 * row['ci_low']:.1f}, {100 * row['ci_high']:.1f}]"
        accuracies = [format_percent(row[name]) for name in ("clean_accuracy", *threats, "union_accuracy")]
        last = row["reason"] if missing else row["attacks"]
        table.add_row(name, str(row["dataset"]), str(row["examples"]), *accuracies, interval, last)
    return table
