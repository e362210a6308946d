"""Write leaderboards for terminals, Markdown, HTML, LaTeX, CSV, JSON and RobustBench."""

from __future__ import annotations

import html
import io
import json
import textwrap
from collections.abc import Sequence
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console, Group
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from robobench.core.registry import unknown_name
from robobench.report.formatting import flag_notes
from robobench.report.latex import latex_leaderboards, latex_matrices
from robobench.report.leaderboard import (
    DEFAULT_COLUMNS,
    HEADINGS,
    WORST_HEADING,
    filter_rows,
    format_leaderboard,
    rank_models,
    sort_rows,
    split_leaderboards,
    unranked_notes,
)
from robobench.report.robustbench import model_info_entries

FORMATS = ("table", "md", "csv", "latex", "json", "html", "robustbench")
MAX_LINES = 50
MARK = "^"
LEGEND = (
    f"{MARK} best, or inside its 95 % CI; worst: white-box worst case per image\n"
    "incl. teachers: with all models that the training required"
)
HEADING_WIDTH = 12  # characters of a line of a heading
NOTE_LINES = 4  # of MAX_LINES, for the notes below the leaderboards
TEXT_HEADINGS = ("defense", "model", "flags", "preset", "precision", "hardware")  # left-aligned, may be wrapped

Leaderboard = tuple[str, pd.DataFrame]  # title and lines


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
    """Write the leaderboards of rows as text.

    Args:
        form: one of FORMATS.
        sort: a name of SORTS.
        filters: NAME=VALUE[,VALUE] each; only rows that match all are used.
        columns: names of HEADINGS, for table, md and html; default: those that fit.
        wide: every column. The table is not limited to 80 columns when the output is a pipe.
        everything: all lines of the table instead of at most MAX_LINES.

    Raises:
        RequestError: an unknown format, column, filter or sort name, or no row matches.
    """
    if form not in FORMATS:
        raise unknown_name("format", form, FORMATS)
    rows = filter_rows(rows, filters)
    lines = sort_rows(rank_models(rows), sort)
    selected = tuple(columns) if columns else tuple(HEADINGS) if wide else None
    match form:
        case "csv":
            return lines.to_csv(index=False)
        case "json":
            return json.dumps(json.loads(lines.to_json(orient="records")), indent=1) + "\n"
        case "robustbench":
            return json.dumps(model_info_entries(rows), indent=1) + "\n"
        case "latex":
            return latex_leaderboards(lines) + "\n" + latex_matrices(rows)
        case "table":
            return terminal_leaderboards(lines, selected, wide=wide, everything=everything)
        case "md":
            return _markdown_leaderboards(lines, selected or DEFAULT_COLUMNS)
    out = []
    for title, part in split_leaderboards(lines):
        table = format_leaderboard(part, selected or DEFAULT_COLUMNS).rename(columns={"worst": WORST_HEADING})
        notes = "".join(f"<p>{html.escape(note)}</p>\n" for note in unranked_notes(part))
        out.append(f"<h2>{html.escape(title)}</h2>\n{table.to_html(index=False, escape=True)}\n{notes}")
    return "\n".join(out)


def _markdown_leaderboards(lines: pd.DataFrame, columns: Sequence[str]) -> str:
    out = []
    for title, part in split_leaderboards(lines):
        table = format_leaderboard(part, columns).map(markdown_escape)
        if "worst" in table:
            table["worst"] = [f"**{w}**" if best else w for w, best in zip(table["worst"], part["best"], strict=True)]
        notes = "".join(f"\n{markdown_escape(note)}\n" for note in unranked_notes(part))
        out.append(
            f"**{markdown_escape(title)}**\n\n{markdown(table.rename(columns={'worst': WORST_HEADING}))}\n{notes}"
        )
    return "\n".join(out)


def markdown_escape(value: Any) -> str:
    """Escape what Markdown reads as a table, a tag or emphasis."""
    escaped = html.escape(str(value), quote=False)
    return "".join("\\" + c if c in "\\|*_`" else c for c in escaped)


def markdown(table: pd.DataFrame) -> str:
    """Write a DataFrame of text as a Markdown table."""

    def line(values: Any) -> str:
        return "| " + " | ".join(str(v) for v in values) + " |"

    head = [line(table.columns), line(["---"] * len(table.columns))]
    return "\n".join([*head, *(line(values) for values in table.itertuples(index=False))])


# --- terminal -----------------------------------------------------------------------------------


def terminal_leaderboards(lines: pd.DataFrame, columns: Sequence[str] | None, *, wide: bool, everything: bool) -> str:
    """Write leaderboards as wide as the terminal, colored there and plain in a pipe."""
    real = Console()
    buffer = io.StringIO()
    width = 10_000 if wide and not real.is_terminal else real.width
    console = Console(file=buffer, width=width, force_terminal=real.is_terminal, no_color=real.no_color)
    parts = list(split_leaderboards(lines))
    shown = parts if everything else limit_lines(parts, columns, console)
    for title, part in shown:
        console.print(render_leaderboard(title, part, columns, console))
        console.print()
    hidden = sum(len(part) for _, part in parts) - sum(len(part) for _, part in shown)
    if hidden:
        others = len(parts) - len(shown)
        console.print(
            Text(f"{hidden} more lines{f', {others} more leaderboards' if others else ''}: --all, or --filter")
        )
    console.print(Text(LEGEND))
    return "\n".join(line.rstrip() for line in buffer.getvalue().split("\n"))


def limit_lines(parts: list[Leaderboard], columns: Sequence[str] | None, console: Console) -> list[Leaderboard]:
    """Cut leaderboards to their first lines so that all together take at most MAX_LINES printed lines.

    Every leaderboard keeps three lines; the last ones are left out if there is no room for that. Remaining room is
    distributed in turn, from the first leaderboard on.
    """

    def height(title: str, part: pd.DataFrame) -> int:
        return len(console.render_lines(render_leaderboard(title, part, columns, console), pad=False)) + 1

    room = MAX_LINES - NOTE_LINES
    counts: list[int] = []
    for title, part in parts:
        need = height(title, part.head(3))
        if need > room:
            break
        counts.append(min(len(part), 3))
        room -= need
    kept = parts[: len(counts)]
    while room > 0 and any(n < len(part) for n, (_, part) in zip(counts, kept, strict=True)):
        for i, (_, part) in enumerate(kept):
            if room > 0 and counts[i] < len(part):
                counts[i], room = counts[i] + 1, room - 1
    limit = MAX_LINES - NOTE_LINES
    while (total := sum(height(t, part.head(n)) for n, (t, part) in zip(counts, kept, strict=True))) > limit:
        for _ in range(max(1, (total - limit) // 2)):  # wrapped lines took more room than one each
            counts[counts.index(max(counts))] -= 1
    return [(title, part.head(n)) for (title, part), n in zip(kept, counts, strict=True)]


def render_leaderboard(title: str, lines: pd.DataFrame, columns: Sequence[str] | None, console: Console) -> Group:
    """Render one leaderboard with as many columns as the console has room for.

    Without room, the default columns are shown in a compact form with the flags below the table. Columns that the user
    selected are split over several tables instead.
    """
    several, notes = lines["model"].nunique() > 1, [Text(note) for note in unranked_notes(lines)]
    default = tuple(c for c in DEFAULT_COLUMNS if c != "model" or several)
    with_forwards = (*default[:-1], "train_forwards", "total_train_forwards", "flags")
    for choice in [tuple(columns)] if columns else [with_forwards, default]:
        shown = format_leaderboard(lines, choice, MARK)
        table = _make_table(shown, lines["best"])
        if _natural_width(table, console) <= console.width:
            return Group(Text(title), table, *notes)
    if columns:
        return Group(Text(title), *_split_table(shown, lines["best"], console), *notes)
    shown = format_leaderboard(lines, [c for c in DEFAULT_COLUMNS if c not in ("model", "flags")], MARK)
    shown["95 % CI"] = shown["95 % CI"].str.strip("[]").str.replace(", ", "-")
    if several:
        shown["defense"] += "\n" + lines["model"].to_numpy()
    without_gap = shown.drop(columns=HEADINGS["gap"])  # transfer minus worst; both are shown
    for compact, heading_width in ((shown, HEADING_WIDTH), (shown, 1), (without_gap, HEADING_WIDTH), (without_gap, 1)):
        table = _make_table(compact, lines["best"], heading_width)
        if _natural_width(table, console) <= console.width:
            break
    names = lines["defense"] + " " + lines["model"] if several else lines["defense"]
    flags = lines["flags"].str.split(",").map(lambda flags: list(filter(None, flags)))
    return Group(Text(title), table, *map(Text, flag_notes(zip(names, flags, strict=True))), *notes)


def _split_table(shown: pd.DataFrame, best: pd.Series, console: Console) -> list[Table]:
    """Split a leaderboard into tables that fit the console; rank and defense come first in each."""
    lead = [c for c in ("rank", "defense") if c in shown]
    parts: list[list[str]] = [[]]
    for column in (str(c) for c in shown.columns if c not in lead):
        wider = [*lead, *parts[-1], column]
        if parts[-1] and _natural_width(_make_table(shown[wider], best), console) > console.width:
            parts.append([])
        parts[-1].append(column)
    return [_make_table(shown[[*lead, *part]], best) for part in parts]


def _natural_width(table: Table, console: Console) -> int:
    """Return the width of a table without any limit."""
    return Measurement.get(console, console.options.update(max_width=10_000), table).maximum


def _make_table(shown: pd.DataFrame, best: pd.Series, heading_width: int = HEADING_WIDTH) -> Table:
    """Make a rich table. Headings are wrapped between words, to `heading_width` or the width of their column."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for column in shown.columns:
        words = column.replace(" - ", "_- ").split()  # no line starts with the minus sign
        width = max(heading_width, *map(len, words), *(len(v) for v in shown[column]))
        text = column in TEXT_HEADINGS
        table.add_column(
            "\n".join(textwrap.wrap(" ".join(words), width, break_on_hyphens=False)).replace("_-", " -"),
            justify="left" if text else "right",
            overflow="fold",
            no_wrap=not text,
            style="bold" if column == "worst" else None,
        )
    for values, mark in zip(shown.itertuples(index=False), best, strict=True):
        table.add_row(*(Text(str(v)) for v in values), style="green" if mark else None)
    return table
