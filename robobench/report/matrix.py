"""The result matrices of `run` and `compare`: a row for every model, a column for every attack and radius."""

from __future__ import annotations

import pandas as pd
from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from robobench.report.formatting import (
    COMPARABLE_KEYS,
    MISSING,
    add_names,
    flag_notes,
    format_budgets,
    format_count,
    format_interval,
    format_percent,
    format_seconds,
    format_size,
    format_text,
    format_threat,
    iter_groups,
    list_flags,
    named_models,
    threats,
)

PROTOCOLS = {
    "white-box": "each model is attacked directly",
    "transfer": "examples made on the undefended model; says nothing about white-box robustness",
}
CELL_COLUMNS = [
    *("attack", "threat_norm", "threat_eps", "budget", "budget_reduced", "status", "robust_accuracy", "source_digest"),
    *("worst_case_accuracy", "worst_case_ci_low", "worst_case_ci_high"),
]
MAX_NAME_WIDTH = 30  # longer names are wrapped


def matrix(rows: pd.DataFrame, protocol: str) -> pd.DataFrame:
    """Arrange comparable rows of a protocol as text: a row for every model, a column for every (attack, norm, eps).

    The last columns hold the worst case per image over the attacks of a (norm, eps), with its 95 % CI. A failed cell
    is MISSING. "*" marks a reduced budget; `budget_notes` explains it.
    """
    rows = rows[rows["protocol"] == protocol]
    rows = rows.assign(budget=format_budgets(rows))
    several = rows.groupby("attack")["budget"].nunique() > 1
    lines: dict[str, dict[str, str]] = {}
    for name, model_rows in named_models(rows):
        line = lines[name] = {"clean": format_percent(model_rows["clean_accuracy"].max())}
        cells = model_rows[CELL_COLUMNS].to_dict("records")
        for norm, eps in threats(rows):
            here = [c for c in cells if (c["threat_norm"], c["threat_eps"]) == (norm, eps)]
            here = [c for c in here if str(c["source_digest"]) == str(here[0]["source_digest"])]  # as the worst case
            for cell in here:
                column = f"{cell['attack']} {format_threat(norm, eps)}"
                if several[str(cell["attack"])]:
                    column += f" [{cell['budget']}]"
                mark = "*" if cell["budget_reduced"] and cell["status"] == "ok" else ""
                line[column] = format_percent(cell["robust_accuracy"]) + mark
            for first in [c for c in here if c["status"] == "ok"][:1]:
                interval = format_interval(first["worst_case_ci_low"], first["worst_case_ci_high"])
                line[f"worst {format_threat(norm, eps)}"] = f"{format_percent(first['worst_case_accuracy'])} {interval}"
    table = pd.DataFrame.from_dict(lines, orient="index").fillna(MISSING)
    worst = [c for c in table.columns if c.startswith("worst ")]
    table = table[[c for c in table.columns if c not in worst] + worst]
    table.index.name = "defense"
    return table


def budget_notes(rows: pd.DataFrame) -> list[str]:
    """List the attacks with a reduced budget and their settings."""
    reduced = rows[rows["budget_reduced"].astype(bool)]
    used = reduced.assign(budget=format_budgets(reduced))[["attack", "budget"]].drop_duplicates()
    return [f"* {attack}: {budget}" for attack, budget in used.itertuples(index=False)]


def cost_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Arrange training time, training cost, memory and flags as text, a row for every model."""
    lines = {}
    for name, model_rows in named_models(rows):
        first = model_rows.iloc[0]
        peak = first["peak_memory_bytes"]
        lines[name] = {
            "clean (%)": format_percent(model_rows["clean_accuracy"].max()),
            "train time (s)": format_seconds(first["train_seconds"]),
            "incl. teachers (s)": format_seconds(first["total_train_seconds"]),
            "CPU time (s)": format_seconds(first["train_cpu_seconds"]),
            "warm-up (s)": format_seconds(first["warmup_seconds"]),
            "train cost (forward equiv.)": format_count(first["train_forwards"]),
            "peak memory (GiB)": MISSING if pd.isna(peak) else f"{peak / 2**30:.2f}",
            "flags": ", ".join(list_flags(model_rows)) or MISSING,
        }
        if "train_flops" in rows and rows["train_flops"].notna().any():
            flops = first["train_flops"]
            lines[name]["train cost (TFLOP)"] = MISSING if pd.isna(flops) else f"{flops / 1e12:.3g}"
            lines[name]["flags"] = lines[name].pop("flags")  # stays the last column
    table = pd.DataFrame.from_dict(lines, orient="index")
    table.index.name = "defense"
    return table


def pass_notes(rows: pd.DataFrame) -> list[str]:
    """List the fwd / input-grad / weight-grad passes of every model that declares them, with a legend."""
    passes = {name: format_text(model_rows.iloc[0]["passes"]) for name, model_rows in named_models(rows)}
    lines = [f"  {name}: {text}" for name, text in passes.items() if text != MISSING]
    legend = [
        "fwd / input-grad / weight-grad passes per image and epoch:",
        "F forward (cost 1), Gx input gradient (1), Gw weight gradient (2), T teacher",
    ]
    return [*legend, *lines] if lines else []


# --- terminal -----------------------------------------------------------------------------------


def header_lines(column: str) -> list[str]:
    """Split a heading into header lines, a word each; the budget of an attack stays on the last line."""
    words, bracket, budget = column.partition(" [")
    lines = words.split()
    return [*lines[:-1], lines[-1] + bracket + budget]


def group_by_threat(table: pd.DataFrame) -> list[list[str]]:
    """Group the columns of a matrix: first those without a radius, then those of every radius."""
    groups: dict[str, list[str]] = {"": []}
    for column in table.columns:
        groups.setdefault(column.partition(" ")[2].split(" [")[0], []).append(column)
    return list(groups.values())


def split_columns(table: pd.DataFrame, width: int) -> list[pd.DataFrame]:
    """Split a matrix into tables of at most `width` characters, between radii where possible.

    The columns without a radius come first in each table.
    """
    used_by_names = 2 + min(MAX_NAME_WIDTH, max(len(str(name)) for name in [*table.index, table.index.name or ""]))
    need = {c: 2 + max(*(len(line) for line in header_lines(c)), *(len(v) for v in table[c])) for c in table.columns}
    lead, *by_threat = group_by_threat(table)
    free = max(width - used_by_names - sum(need[c] for c in lead), 1)
    parts: list[list[str]] = []
    used = 0
    for columns in by_threat:
        total = sum(need[c] for c in columns)
        if parts and used + total <= free:
            parts[-1] += columns
            used += total
            continue
        used = free + 1
        for column in columns:
            if used + need[column] > free:
                parts.append([])
                used = 0
            parts[-1].append(column)
            used += need[column]
    return [table[[*lead, *part]] for part in parts] or [table]


def render_matrix(table: pd.DataFrame, title: str, caption: str = "") -> Group:
    """Render a matrix for a terminal, with headings split over several lines."""
    out = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    out.add_column(Text(str(table.index.name or "")), overflow="fold", max_width=MAX_NAME_WIDTH)
    for column in table.columns:
        lines = header_lines(column)
        bold = column.startswith("clean") or lines[0] == "worst"
        out.add_column(Text("\n".join(lines)), justify="right", no_wrap=True, style="bold" if bold else "")
    for name, values in table.iterrows():
        out.add_row(Text(str(name)), *(Text(str(v)) for v in values))
    return Group(*(part for part in (title and Text(title), out, caption and Text(caption)) if part))


def failure_notes(rows: pd.DataFrame) -> list[str]:
    """List the cells without a result, with the reason."""
    failed = rows[rows["status"] != "ok"]
    return [f"failed: {r.defense}, {r.attack}, {r.protocol}: {r.reason}" for r in failed.itertuples()]


def print_matrices(rows: pd.DataFrame, console: Console) -> None:
    """Print white-box and transfer matrices, then costs, flags and failed cells."""
    for part in map(add_names, iter_groups(rows, COMPARABLE_KEYS)):
        first = part.iloc[0]
        images = f"{first['examples']} test images{format_size(first)}"
        setting = f"{first['dataset']}, {', '.join(sorted(set(part['model'])))}, {images}"
        for protocol, meaning in PROTOCOLS.items():
            selected = part[part["protocol"] == protocol]
            if len(selected):
                tables = split_columns(matrix(selected, protocol), console.width)
                for number, table in enumerate(tables):
                    title = "" if number else f"{protocol} accuracy, % ({setting})\n{meaning}"
                    notes = "\n".join(budget_notes(selected)) if number == len(tables) - 1 else ""
                    console.print(render_matrix(table, title, notes))
                    console.print()
        flags = flag_notes((name, list_flags(model_rows)) for name, model_rows in named_models(part))
        notes = "\n".join([*(flags or ["no flags"]), *pass_notes(part)])
        console.print(render_matrix(cost_table(part).drop(columns="flags"), f"cost and flags ({setting})", notes))
        for note in failure_notes(part):
            console.print(note, markup=False)
