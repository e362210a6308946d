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
from robobench.report.by_defense import combine_seeds
from robobench.report.formatting import flag_notes
from robobench.report.latex import latex_leaderboards, latex_matrices
from robobench.report.leaderboard import (
    HEADINGS,
    LEADERBOARD_KEYS,
    WORST_HEADING,
    check_columns,
    default_columns,
    filter_rows,
    format_leaderboard,
    interval_heading,
    rank_models,
    sort_rows,
    split_leaderboards,
    unranked_notes,
)
from robobench.report.robustbench import model_info_entries

FORMATS = ("table", "md", "csv", "latex", "json", "html", "robustbench")
BY = ("model", "defense")
MARK = "^"
LEGEND = (
    f"{MARK} best, or inside its 95 % CI; worst: white-box worst case per image\n"
    "incl. teachers: with all models that the training required"
)
SPREAD_LEGEND = "±: standard deviation over seeds; 95 % CI: over images for one seed, else mean ± standard deviation"
RICH_LINES = 100  # of a table that is drawn with colors and wrapped names
PLAIN_LINES = 1000  # in all leaderboards together, from which on none is fitted to the terminal
HEADING_WIDTH = 12  # characters of a line of a heading
TEXT_HEADINGS = ("defense", "model", "flags", "preset", "precision", "hardware")  # left-aligned, may be wrapped


def leaderboard(
    rows: pd.DataFrame,
    form: str = "table",
    *,
    sort: str = "worst",
    filters: Sequence[str] = (),
    columns: Sequence[str] | None = None,
    wide: bool = False,
    by: str = "model",
) -> str:
    """Write the leaderboards of rows as text.

    Args:
        form: one of FORMATS.
        sort: a name of SORTS.
        filters: NAME=VALUE[,VALUE] each; only rows that match all are used.
        columns: names of HEADINGS, for every format but robustbench; default: those that fit, csv and json: all.
        wide: every column. The table is not limited to 80 columns when the output is a pipe.
        by: "model": a line for every model; "defense": one for all seeds of a defense, mean ± standard deviation.

    Raises:
        RequestError: an unknown format, column, filter or sort name, or no row matches.
    """
    if form not in FORMATS:
        raise unknown_name("format", form, FORMATS)
    if by not in BY:
        raise unknown_name("value of --by", by, BY)
    rows = filter_rows(rows, filters)
    lines = rank_models(rows)
    if by == "defense":
        lines = combine_seeds(lines, set(rows["source_digest"].dropna()))
    lines = sort_rows(lines, sort)
    every = tuple(name for name in HEADINGS if name != "n" or by == "defense")
    selected = tuple(columns) if columns else every if wide else None
    check_columns(selected or (), lines)
    match form:
        case "csv":
            return _select(lines, columns).to_csv(index=False)
        case "json":
            return json.dumps(json.loads(_select(lines, columns).to_json(orient="records")), indent=1) + "\n"
        case "robustbench":
            return json.dumps(model_info_entries(rows), indent=1) + "\n"
        case "latex":
            tables = latex_leaderboards(lines, selected)
            return tables if selected or by == "defense" else tables + "\n" + latex_matrices(rows)
        case "table":
            return terminal_leaderboards(lines, selected, wide=wide)
        case "md":
            return _markdown_leaderboards(lines, selected or default_columns(lines))
    out = []
    for title, part in split_leaderboards(lines):
        table = format_leaderboard(part, selected or default_columns(lines)).rename(columns={"worst": WORST_HEADING})
        notes = "".join(f"<p>{html.escape(note)}</p>\n" for note in unranked_notes(part))
        out.append(f"<h2>{html.escape(title)}</h2>\n{table.to_html(index=False, escape=True)}\n{notes}")
    return "\n".join(out)


def _select(lines: pd.DataFrame, columns: Sequence[str] | None) -> pd.DataFrame:
    """Return the values of the selected columns, after those that name a leaderboard; all without a selection."""
    if not columns:
        return lines
    names = [part for name in columns for part in (("ci_low", "ci_high") if name == "ci" else (name, f"{name}_std"))]
    return lines[[*LEADERBOARD_KEYS, *(name for name in names if name in lines and name not in LEADERBOARD_KEYS)]]


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


def terminal_leaderboards(lines: pd.DataFrame, columns: Sequence[str] | None, *, wide: bool) -> str:
    """Write leaderboards as wide as the terminal, colored there and plain in a pipe. No line is left out."""
    if len(lines) > PLAIN_LINES:
        return _plain_leaderboards(lines.reset_index(drop=True), columns)
    real = Console()
    buffer = io.StringIO()
    width = 10_000 if wide and not real.is_terminal else real.width
    console = Console(file=buffer, width=width, force_terminal=real.is_terminal, no_color=real.no_color)
    for title, part in split_leaderboards(lines):
        console.print(render_leaderboard(title, part, columns, console))
        console.print()
    several = lines["defense"].str.contains(r" \(seed ").any()
    hint = "--by defense shows mean ± standard deviation over seeds" if several else ""
    console.print(Text("\n".join(filter(None, [LEGEND, SPREAD_LEGEND if "n" in lines else "", hint]))))
    return "\n".join(line.rstrip() for line in buffer.getvalue().split("\n"))


def _plain_leaderboards(lines: pd.DataFrame, columns: Sequence[str] | None) -> str:
    """Write many lines as plain text with all default columns, each as wide as it needs to be."""
    shown = format_leaderboard(lines, columns or default_columns(lines), MARK)
    cells = _align(shown, HEADING_WIDTH)
    height = len(cells[0]) - len(lines)
    texts = ["  ".join(line).rstrip() for line in zip(*cells, strict=True)]
    rule = "─" * max(map(len, texts[:height]))
    out = []
    for title, part in split_leaderboards(lines):
        out += [title, *texts[:height], rule, *(texts[height + number] for number in part.index)]
        out += [*unranked_notes(part), ""]
    return "\n".join([*out, LEGEND, *([SPREAD_LEGEND] if "n" in lines else [])]) + "\n"


def _align(shown: pd.DataFrame, heading_width: int) -> list[list[str]]:
    """Return the columns of a table as texts of equal width: the lines of the heading, then the values."""
    headings = [_wrap_heading(column, shown[column], heading_width) for column in shown.columns]
    height = max(map(len, headings))
    columns = []
    for column, heading in zip(shown.columns, headings, strict=True):
        cells = [*[""] * (height - len(heading)), *heading, *shown[column].tolist()]
        width = max(map(len, cells))
        columns.append([c.ljust(width) if column in TEXT_HEADINGS else c.rjust(width) for c in cells])
    return columns


def render_leaderboard(title: str, lines: pd.DataFrame, columns: Sequence[str] | None, console: Console) -> Group:
    """Render one leaderboard with as many columns as the console has room for.

    Without room, the default columns are shown in a compact form with the flags below the table. Columns that the user
    selected are split over several tables instead.
    """
    several, notes = lines["model"].nunique() > 1, [Text(note) for note in unranked_notes(lines)]
    usual = default_columns(lines)
    default = tuple(c for c in usual if c != "model" or several)
    forwards = ("train_forwards", "total_train_forwards") if lines["train_forwards"].notna().any() else ()
    with_forwards = (*(c for c in default if c != "flags"), *forwards, *(c for c in default if c == "flags"))
    for choice in [tuple(columns)] if columns else [with_forwards, default]:
        shown = format_leaderboard(lines, choice, MARK)
        table = _make_table(shown, lines["best"])
        if _natural_width(table, console) <= console.width:
            return Group(Text(title), table, *notes)
    if columns:
        return Group(Text(title), *split_table(shown, console, lines["best"]), *notes)
    shown = format_leaderboard(lines, [c for c in usual if c not in ("model", "flags")], MARK)
    interval = interval_heading(lines)
    shown[interval] = shown[interval].str.strip("[]").str.replace(", ", "-")
    if several:
        shown["defense"] += "\n" + lines["model"].to_numpy()
    without_gap = shown.drop(columns=HEADINGS["gap"], errors="ignore")  # transfer minus worst; both are shown
    without_ci = without_gap.drop(columns=interval)
    tries = [(shown, HEADING_WIDTH), (shown, 1), (without_gap, HEADING_WIDTH), (without_gap, 1)]
    tries += [(without_ci, 1)] if "n" in lines else []  # the spread over seeds is shown
    for compact, heading_width in tries:
        table = _make_table(compact, lines["best"], heading_width)
        if _natural_width(table, console) <= console.width:
            break
    names = lines["defense"] + " " + lines["model"] if several else lines["defense"]
    flags = lines["flags"].str.split(",").map(lambda flags: list(filter(None, flags)))
    return Group(Text(title), table, *map(Text, flag_notes(zip(names, flags, strict=True))), *notes)


def split_table(shown: pd.DataFrame, console: Console, best: pd.Series | None = None) -> list[Table | Text]:
    """Split a leaderboard into tables that fit the console; rank and defense come first in each.

    Args:
        best: the lines to mark; None: none of them.
    """
    best = pd.Series(False, shown.index) if best is None else best
    lead = [c for c in ("rank", "defense") if c in shown]
    parts: list[list[str]] = [[]]
    for column in (str(c) for c in shown.columns if c not in lead):
        wider = [*lead, *parts[-1], column]
        if parts[-1] and _natural_width(_make_table(shown[wider], best), console) > console.width:
            parts.append([])
        parts[-1].append(column)
    return [_make_table(shown[[*lead, *part]], best) for part in parts]


def _natural_width(table: Table | Text, console: Console) -> int:
    """Return the width of a table without any limit."""
    return Measurement.get(console, console.options.update(max_width=10_000), table).maximum


def _wrap_heading(column: str, values: pd.Series, heading_width: int) -> list[str]:
    """Wrap a heading between words, to `heading_width` or the width of its column."""
    words = column.replace(" - ", "_- ").split()  # no line starts with the minus sign
    width = max(heading_width, *map(len, words), int(values.str.len().max()))
    return [line.replace("_-", " -") for line in textwrap.wrap(" ".join(words), width, break_on_hyphens=False)]


def _plain_table(shown: pd.DataFrame, heading_width: int) -> Text:
    """Make a table of text, for the many lines that rich would need seconds for. Nothing is wrapped or colored."""
    columns = _align(shown, heading_width)
    height = len(columns[0]) - len(shown)
    lines = ["  ".join(cells) for cells in zip(*columns, strict=True)]
    return Text("\n".join([*lines[:height], "─" * len(lines[0]), *lines[height:]]), no_wrap=True, overflow="ignore")


def _make_table(shown: pd.DataFrame, best: pd.Series, heading_width: int = HEADING_WIDTH) -> Table | Text:
    """Make a rich table, or a plain one of many lines."""
    if len(shown) > RICH_LINES:
        return _plain_table(shown, heading_width)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for column in shown.columns:
        text = column in TEXT_HEADINGS
        table.add_column(
            "\n".join(_wrap_heading(column, shown[column], heading_width)),
            justify="left" if text else "right",
            overflow="fold",
            no_wrap=not text,
            style="bold" if column == "worst" else None,
        )
    for values, mark in zip(shown.itertuples(index=False), best, strict=True):
        table.add_row(*(Text(str(v)) for v in values), style="green" if mark else None)
    return table
