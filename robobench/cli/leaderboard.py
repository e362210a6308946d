"""`robobench leaderboard`: what a store or a published folder holds, ranked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robobench.cli import options as o

if TYPE_CHECKING:
    import pandas as pd

STORE = Path("runs")

HELP = "Rank trained networks by their white-box worst case; boards of different settings stand apart."
EPILOG = """
Examples:

  robobench leaderboard

  robobench leaderboard --sort whole --filter dataset=cifar10 --filter eps=8/255

  robobench leaderboard --format md > results.md

  robobench leaderboard leaderboards/cifar10-jpeg-resnet20

  robobench leaderboard --published cifar10-Linf
"""


def main(
    place: Annotated[
        Path | None,
        typer.Argument(
            help="A store or a folder of leaderboards/; default: --out, where there is none robobench's own boards. "
            "With --published, a board's name."
        ),
    ] = None,
    published: Annotated[
        bool, typer.Option("--published", help="Show RobustBench's published figures instead, which are not ours.")
    ] = False,
    out: Annotated[Path, typer.Option(help="The store.")] = STORE,
    form: Annotated[
        str, typer.Option("--format", help="table, md, csv, latex, json, html or robustbench (their model_info).")
    ] = "table",
    sort: Annotated[str, typer.Option(help="worst, clean, transfer, gap, own, whole, forwards or defense.")] = "worst",
    filter_: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            help="NAME=VALUE[,VALUE]: dataset, model, preset, defense, seed, norm, eps, precision, hardware, examples.",
        ),
    ] = None,
    columns: Annotated[str | None, typer.Option(help="Headings, comma-separated: rank,defense,worst,...")] = None,
    wide: Annotated[bool, typer.Option("--wide", help="Every column.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Every line of the table, not the first 50.")] = False,
) -> int:
    """Print the leaderboard to stdout."""
    if published:
        return _published(str(place) if place else None)
    from robobench.report.leaderboard_formats import leaderboard

    rows, note = _rows(place, out)
    text = leaderboard(
        rows,
        form,
        sort=sort,
        filters=filter_ or (),
        columns=o.split_names(columns),
        wide=wide,
        everything=everything,
    )
    print(text, end="")
    if note:
        typer.echo(note, err=True)
    return 0


def _rows(place: Path | None, out: Path) -> tuple[pd.DataFrame, str]:
    """Read the rows of a place; without one and without a store, those of the boards that robobench measured.

    Returns:
        The rows, and what there is to say about them.
    """
    import pandas as pd

    from robobench.results.rows import bundled_boards, read_rows

    boards = bundled_boards()
    if place is None and out == STORE and not out.exists() and boards:
        names = ", ".join(board.name for board in boards)
        note = f"note: no store in '{out}'; this is what robobench itself measured ({names})"
        return pd.concat([read_rows(board) for board in boards], ignore_index=True), note
    return read_rows(place or out), ""


def _published(board: str | None) -> int:
    from rich.console import Console

    from robobench.report.robustbench import boards, table

    console = Console()
    console = console if console.is_terminal else Console(width=200)
    for name, lines in boards(board).items():
        console.print(table(name, lines))
    return 0
