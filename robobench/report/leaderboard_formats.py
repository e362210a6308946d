"""The leaderboard for a terminal, a document, a program or a paper."""

from __future__ import annotations

import html
import io
import json
from collections.abc import Sequence
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console, Group
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from robobench.core.formatting import format_eps
from robobench.core.registry import unknown_name
from robobench.report.formatting import BOARD, NETWORK, cells, groups, label
from robobench.report.latex import latex_boards, latex_matrices
from robobench.report.leaderboard import DEFAULT, SHOWN, board_text, boards, chosen, ordered, rank_models
from robobench.report.matrix import budgets

FORMATS = ("table", "md", "csv", "latex", "json", "html", "robustbench")

Part = tuple[str, pd.DataFrame]  # a board and its title

MOST_LINES = 50

MARK = "^"

LEGEND = f"{MARK} best, and all inside its 95 % interval; worst: white-box, image by image; gap: transfer - worst"


def leaderboard(
    rows: pd.DataFrame,
    form: str = "table",
    *,
    sort: str = "worst",
    filters: Sequence[str] = (),
    columns: Sequence[str] | None = None,
    wide: bool = False,
    everything: bool = False,
) -> str:
    """Write the leaderboard in a format of FORMATS.

    Args:
        filters: NAME=VALUE[,VALUE] each; only rows that pass all of them.
        columns: headings of SHOWN for table, md and html; by default those that fit.
        wide: every column; a pipe gets as many characters as they need.
        everything: for the table, all lines; otherwise at most MOST_LINES.

    Raises:
        RequestError: an unknown format, column, filter or sort name, or a filter that leaves nothing.
    """
    if form not in FORMATS:
        raise unknown_name("format", form, FORMATS)
    rows = chosen(rows, filters)
    lines = ordered(rank_models(rows), sort)
    if form == "csv":
        return lines.to_csv(index=False)
    if form == "json":
        return json.dumps(json.loads(lines.to_json(orient="records")), indent=1) + "\n"
    if form == "robustbench":
        return json.dumps(robustbench(rows), indent=1) + "\n"
    if form == "latex":
        return latex_boards(lines) + "\n" + latex_matrices(rows)
    wanted = tuple(columns) if columns else SHOWN if wide else None
    if form == "table":
        return terminal(lines, wanted, wide=wide, everything=everything)
    out = []
    for title, part in boards(lines):
        shown = board_text(part, wanted or DEFAULT)
        if form == "md":
            marked = board_text(part.assign(best=False), wanted or DEFAULT).map(markdown_escape)
            if "worst" in marked:
                best = part["best"].to_numpy()
                marked["worst"] = [f"**{w}**" if b else w for w, b in zip(marked["worst"], best, strict=True)]
            out.append(f"**{markdown_escape(title)}**\n\n{markdown(marked)}\n")
        else:
            out.append(f"<h2>{html.escape(title)}</h2>\n{shown.to_html(index=False, escape=True)}\n")
    return "\n".join(out)


def terminal(lines: pd.DataFrame, columns: Sequence[str] | None, *, wide: bool, everything: bool) -> str:
    """Draw boards as wide as the terminal, in colors there, plain in a pipe; at most MOST_LINES unless `everything`."""
    real = Console()
    buffer = io.StringIO()
    width = 10_000 if wide and not real.is_terminal else real.width
    console = Console(file=buffer, width=width, force_terminal=real.is_terminal, no_color=real.no_color)
    parts = list(boards(lines))
    shown = parts if everything else few(parts, columns, console)
    for title, part in shown:
        console.print(draw(title, part, columns, console))
        console.print()
    more = sum(len(part) for _, part in parts) - sum(len(part) for _, part in shown)
    if more:
        hidden = len(parts) - len(shown)
        console.print(Text(f"{more} more lines{f', {hidden} more boards' if hidden else ''}: --all, or --filter"))
    console.print(Text(LEGEND))
    return "\n".join(line.rstrip() for line in buffer.getvalue().split("\n"))


def few(parts: list[Part], columns: Sequence[str] | None, console: Console) -> list[Part]:
    """Cut boards to their first lines so that all fit MOST_LINES printed lines; the last boards go first.

    A board keeps three lines or stays out; what room is left goes to the first boards, a line each in turn.
    """

    def height(title: str, part: pd.DataFrame) -> int:
        return len(console.render_lines(draw(title, part, columns, console), pad=False)) + 1

    room = MOST_LINES - 4  # the notes below
    keep: list[int] = []
    for title, part in parts:
        need = height(title, part.head(3))
        if need > room:
            break
        keep.append(min(len(part), 3))
        room -= need
    kept = parts[: len(keep)]
    while room > 0 and any(n < len(part) for n, (_, part) in zip(keep, kept, strict=True)):
        for i, (_, part) in enumerate(kept):
            if room > 0 and keep[i] < len(part):
                keep[i], room = keep[i] + 1, room - 1
    while (total := sum(height(t, part.head(n)) for n, (t, part) in zip(keep, kept, strict=True))) > MOST_LINES - 4:
        for _ in range(max(1, (total - MOST_LINES + 4) // 2)):  # a line was folded: give some back
            longest = keep.index(max(keep))
            keep[longest] -= 1
    return [(title, part.head(n)) for (title, part), n in zip(kept, keep, strict=True)]


def draw(title: str, lines: pd.DataFrame, columns: Sequence[str] | None, console: Console) -> Group:
    """Draw one board with as many columns as the console has room for.

    Where flags find no room they stand under the name of their network, and headings are shortened. Columns that
    were asked for stand in as many tables as they need, one under the other.
    """
    several = lines["model"].nunique() > 1
    plain = tuple(c for c in DEFAULT if c != "model" or several)
    choices = [tuple(columns)] if columns else [(*plain[:-1], "own fwd", "whole fwd", "flags"), plain]
    for choice in choices:
        shown = board_text(lines, choice, MARK)
        table = _table(shown, lines["best"])
        if _natural(table, console) <= console.width:
            return Group(Text(title), table)
    if columns:
        return Group(Text(title), *_cut(shown, lines["best"], console))
    small = board_text(lines, [c for c in DEFAULT if c not in ("model", "flags")], MARK)
    under = [f"\n{m}" if several else "" for m in lines["model"]]
    flags = [f"\n{f}" if f else "" for f in lines["flags"]]
    small["defense"] = [d + m + f for d, m, f in zip(small["defense"], under, flags, strict=True)]
    small["95 %"] = small["95 %"].str.strip("[]").str.replace(", ", "-")
    small = small.rename(columns={"rank": "#", "transfer": "trans-\nfer", "own s": "own\ns", "whole s": "whole\ns"})
    return Group(Text(title), _table(small, lines["best"]))


def _cut(shown: pd.DataFrame, best: pd.Series, console: Console) -> list[Table]:
    """Cut a board into tables that fit the console; rank and defense lead each."""
    lead = [c for c in ("rank", "defense") if c in shown]
    parts: list[list[str]] = [[]]
    for column in (str(c) for c in shown.columns if c not in lead):
        wider = [*lead, *parts[-1], column]
        if parts[-1] and _natural(_table(shown[wider], best), console) > console.width:
            parts.append([])
        parts[-1].append(column)
    return [_table(shown[[*lead, *part]], best) for part in parts]


def _natural(table: Table, console: Console) -> int:
    """Return the width a table would take without a limit."""
    return Measurement.get(console, console.options.update(max_width=10_000), table).maximum


def _table(shown: pd.DataFrame, best: pd.Series) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for column in shown.columns:
        left = column in ("defense", "model", "flags", "preset", "precision", "hardware")
        table.add_column(
            column,
            justify="left" if left else "right",
            overflow="fold",
            no_wrap=not left,
            style="bold" if column == "worst" else None,
        )
    for values, mark in zip(shown.itertuples(index=False), best, strict=True):
        table.add_row(*(Text(str(v)) for v in values), style="green" if mark else None)
    return table


def markdown_escape(value: Any) -> str:
    """Escape what Markdown would read as a table, a tag or emphasis."""
    out = html.escape(str(value), quote=False)
    return "".join("\\" + c if c in "\\|*_`" else c for c in out)


def markdown(table: pd.DataFrame) -> str:
    """Write a frame of text as a Markdown table."""

    def line(values: Any) -> str:
        return "| " + " | ".join(str(v) for v in values) + " |"

    head = [line(table.columns), line(["---"] * len(table.columns))]
    return "\n".join([*head, *(line(values) for values in table.itertuples(index=False))])


def robustbench(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Write entries in RobustBench's model_info form, one per network and radius; accuracies are percent strings.

    Each full-budget white-box attack gives `<attack>_acc`, which for AutoAttack is RobustBench's own key;
    `external` is the worst case over all attacks. What RobustBench asks for and a row does not know is null.

    Source: model_info files of Croce et al., RobustBench, 2021, arXiv:2010.09670.
    """
    out = []
    done = rows[(rows["protocol"] == "white-box") & (rows["status"] == "ok")]
    for network in groups(done, [*BOARD, *NETWORK, "threat_norm", "threat_eps"]):
        first = network.iloc[0]
        full = network[~network["budget_reduced"].astype(bool)]
        notes = [*budgets(network), f"{first['examples']} test images; worst case over {first['worst_case_attacks']}"]
        out.append(
            {
                "link": None,
                "name": label(network),
                "authors": None,
                "additional_data": False,
                "number_forward_passes": 1,
                "dataset": first["dataset"],
                "venue": None,
                "architecture": first["model"],
                "threat_model": first["threat_norm"],
                "eps": format_eps(first["threat_eps"]),
                "clean_acc": f"{100 * first['clean_accuracy']:.2f}",
                "reported": None,
                **{f"{r.attack}_acc": f"{100 * r.robust_accuracy:.2f}" for r in cells(full)},
                "external": f"{100 * first['worst_case_accuracy']:.2f}",
                "unreliable": bool(str(first["flags"]) not in ("", "nan", "None")),
                "footnote": "; ".join(notes),
            }
        )
    return out
