"""The matrices of `run` and `compare`: a network a line, an attack at a radius a column."""

from __future__ import annotations

import pandas as pd
from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from robobench.report.formatting import (
    BOARD,
    MISSING,
    budget_texts,
    count,
    flags_of,
    groups,
    labelled,
    percent,
    point,
    points,
    seconds,
    text,
    with_names,
)

PROTOCOLS = {
    "white-box": "attacks made on each network itself",
    "transfer": "attacks made on the undefended network; says nothing about white-box strength",
}
CELL = [
    *("attack", "threat_norm", "threat_eps", "budget", "budget_reduced", "status", "robust_accuracy", "source_digest"),
    *("worst_case_accuracy", "worst_case_ci_low", "worst_case_ci_high"),
]
NAME_WIDTH = 30  # a longer name is folded


def matrix(rows: pd.DataFrame, protocol: str) -> pd.DataFrame:
    """Lay rows of one board out as a matrix of text: a network a line, an (attack, norm, eps) a column.

    The last columns are the worst case per (norm, eps), image by image, with its 95 % interval. A failed
    cell is a dash; a reduced budget is marked with * and explained by `budgets`.
    """
    rows = rows[rows["protocol"] == protocol]
    rows = rows.assign(budget=budget_texts(rows))
    several = rows.groupby("attack")["budget"].nunique() > 1
    radii = points(rows)
    lines: dict[str, dict[str, str]] = {}
    for name, network in labelled(rows):
        line = lines[name] = {"clean": percent(network["clean_accuracy"].max())}
        cells = network[CELL].to_dict("records")
        for norm, eps in radii:
            at = [cell for cell in cells if (cell["threat_norm"], cell["threat_eps"]) == (norm, eps)]
            at = [cell for cell in at if str(cell["source_digest"]) == str(at[0]["source_digest"])]  # as the worst case
            for cell in at:
                column = f"{cell['attack']} {point(norm, eps)}"
                if several[str(cell["attack"])]:
                    column += f" [{cell['budget']}]"
                mark = "*" if cell["budget_reduced"] and cell["status"] == "ok" else ""
                line[column] = percent(cell["robust_accuracy"]) + mark
            for best in [cell for cell in at if cell["status"] == "ok"][:1]:
                line[f"worst {point(norm, eps)}"] = (
                    f"{percent(best['worst_case_accuracy'])} "
                    f"[{percent(best['worst_case_ci_low'])}, {percent(best['worst_case_ci_high'])}]"
                )
    table = pd.DataFrame.from_dict(lines, orient="index").fillna(MISSING)
    worst = [c for c in table.columns if c.startswith("worst ")]
    table = table[[c for c in table.columns if c not in worst] + worst]
    table.index.name = "defense"
    return table


def budgets(rows: pd.DataFrame) -> list[str]:
    """Explain the reduced budgets of a table, one line an attack."""
    reduced = rows[rows["budget_reduced"].astype(bool)]
    used = reduced.assign(budget=budget_texts(reduced))[["attack", "budget"]].drop_duplicates()
    return [f"* {attack}: {budget}" for attack, budget in used.itertuples(index=False)]


def costs(rows: pd.DataFrame) -> pd.DataFrame:
    """Lay out what each network cost: seconds of its own stages and of all it required, own CPU s, memory, flags."""
    lines = {}
    for name, network in labelled(rows):
        first = network.iloc[0]
        peak = first["peak_memory_bytes"]
        lines[name] = {
            "clean %": percent(network["clean_accuracy"].max()),
            "own s": seconds(first["train_seconds"]),
            "whole s": seconds(first["total_train_seconds"]),
            "CPU s": seconds(first["train_cpu_seconds"]),
            "warm-up s": seconds(first["warmup_seconds"]),
            "forwards": count(first["train_forwards"]),
            "peak GiB": MISSING if pd.isna(peak) else f"{peak / 2**30:.2f}",
            "flags": ", ".join(flags_of(network)) or MISSING,
        }
    out = pd.DataFrame.from_dict(lines, orient="index")
    out.index.name = "defense"
    return out


def passes(rows: pd.DataFrame) -> list[str]:
    """Spell out what the forwards of each network are made of, a line a network that declares them."""
    lines = [f"  {name}: {n.iloc[0]['passes']}" for name, n in labelled(rows) if text(n.iloc[0]["passes"]) != MISSING]
    meaning = "for each image and epoch: F forward, Gx backward to the input (1), Gw to the weights (2); T: teacher's"
    return [meaning, *lines] if lines else []


# --- on a terminal ------------------------------------------------------------------------------


def head(column: str) -> list[str]:
    """Split a column's name over header lines: the attack, the norm, the radius."""
    first, _, rest = column.partition(" ")
    return [first, *rest.split(" ", 1)]


def by_radius(table: pd.DataFrame) -> list[list[str]]:
    """Group a matrix's columns: those without a radius, then each radius with its attacks and its worst case."""
    together: dict[str, list[str]] = {"": []}
    for column in table.columns:
        together.setdefault(column.partition(" ")[2].split(" [")[0], []).append(column)
    return list(together.values())


def blocks(table: pd.DataFrame, width: int) -> list[pd.DataFrame]:
    """Cut a matrix into parts of at most `width` characters, at radii where possible; what has no radius leads each."""
    taken = 2 + min(NAME_WIDTH, max(len(str(name)) for name in [*table.index, table.index.name or ""]))
    need = {c: 2 + max(*(len(part) for part in head(c)), *(len(v) for v in table[c])) for c in table.columns}
    lead, *radii = by_radius(table)
    free = max(width - taken - sum(need[c] for c in lead), 1)
    parts: list[list[str]] = []
    used = 0
    for columns in radii:
        whole = sum(need[c] for c in columns)
        if parts and used + whole <= free:
            parts[-1] += columns
            used += whole
            continue
        used = free + 1
        for column in columns:
            if used + need[column] > free:
                parts.append([])
                used = 0
            parts[-1].append(column)
            used += need[column]
    return [table[[*lead, *part]] for part in parts] or [table]


def stacked(table: pd.DataFrame, title: str, caption: str | None = None) -> Group:
    """Draw a matrix with its columns' names split over header lines, so that it fits a terminal."""
    out = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    out.add_column(Text(str(table.index.name or "")), overflow="fold", max_width=NAME_WIDTH)
    for column in table.columns:
        lines = head(column)
        best = column.startswith("clean") or lines[0] == "worst"
        text = lines[0] == "flags"
        out.add_column(
            Text("\n".join(lines)), justify="left" if text else "right", no_wrap=not text, style="bold" if best else ""
        )
    for name, values in table.iterrows():
        out.add_row(Text(str(name)), *(Text(str(v)) for v in values))
    return Group(*(part for part in (title and Text(title), out, caption and Text(caption)) if part))


def print_matrices(rows: pd.DataFrame, console: Console) -> None:
    """Print the matrices of every board: white-box, transfer, then costs and flags."""
    for board in map(with_names, groups(rows, BOARD)):
        first = board.iloc[0]
        where = f"{first['dataset']}, {', '.join(sorted(set(board['model'])))}, {first['examples']} test images"
        for protocol, meaning in PROTOCOLS.items():
            part = board[board["protocol"] == protocol]
            if len(part):
                cut = blocks(matrix(part, protocol), console.width)
                for number, table in enumerate(cut):
                    title = "" if number else f"{protocol} accuracy, % ({where})\n{meaning}"
                    notes = "\n".join(budgets(part)) if number == len(cut) - 1 else ""
                    console.print(stacked(table, title, notes))
                    console.print()
        console.print(stacked(costs(board), f"cost and flags ({where})", "\n".join(passes(board))))
        for reason in board.loc[board["status"] != "ok", ["defense", "attack", "protocol", "reason"]].itertuples():
            console.print(
                f"no figure: {reason.defense} under {reason.attack} ({reason.protocol}): {reason.reason}",
                markup=False,
            )
