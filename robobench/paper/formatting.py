"""Tables of text in the formats of robobench: published tables, and comparisons with measured numbers."""

from __future__ import annotations

import html
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from robobench.core.registry import unknown_name
from robobench.paper import published
from robobench.report.latex import latex_escape
from robobench.report.leaderboard_formats import markdown

FORMATS = ("table", "md", "csv", "latex", "json", "html")


def check_format(form: str) -> None:
    """Raise RequestError for an unknown table format."""
    if form not in FORMATS:
        raise unknown_name("format", form, FORMATS)


def write(frame: pd.DataFrame, title: str, notes: list[str], form: str, raw: Sequence[Mapping[str, Any]]) -> str:
    """Return a table of text in the format `form`, with notes below it.

    Args:
        raw: unrounded records, which csv and json hold instead of the text.

    Raises:
        RequestError: unknown format.
    """
    check_format(form)
    if form == "csv":
        return pd.DataFrame(raw).to_csv(index=False)
    if form == "json":
        return json.dumps(raw, indent=1) + "\n"
    if form == "md":
        return f"**{title}**\n\n{markdown(frame)}\n\n" + "".join(f"* {note}\n" for note in notes)
    if form == "latex":
        escaped = frame.map(latex_escape).rename(columns=latex_escape)
        body = escaped.to_latex(index=False, caption=latex_escape(title))
        return body + "".join(f"% {note}\n" for note in notes)
    if form == "html":
        below = "".join(f"<li>{html.escape(note)}</li>\n" for note in notes)
        return f"<h2>{html.escape(title)}</h2>\n{frame.to_html(index=False)}\n<ul>\n{below}</ul>\n"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for number, column in enumerate(frame.columns):
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    for values in frame.itertuples(index=False):
        table.add_row(*map(str, values))
    buffer = io.StringIO()
    terminal = Console()
    console = Console(file=buffer, width=terminal.width if terminal.is_terminal else 160)
    console.print(table)
    return buffer.getvalue() + "".join(f"{note}\n" for note in notes)


def published_table(table: str, form: str) -> str:
    """Return one of the paper's tables as text; raises RequestError for an unknown table or format."""
    columns, rows = published.layout(published.check_table(table))
    frame = pd.DataFrame([[row, *cells] for row, cells in rows.items()], columns=["", *columns])
    return write(frame, published.title(table), published.notes(table), form, published.records(table))
