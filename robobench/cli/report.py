"""`robobench report`: a store as one HTML page, and every figure and table as files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from robobench.cli import options as o

HELP = "Write a store's report: one HTML file that is read offline; figures and tables as files where asked."
EPILOG = """
Examples:

  robobench report

  robobench report runs --html results.html --figures figures

  robobench report --out-dir paper

  robobench report runs --board leaderboards/my-setting

  robobench report --fill README.md
"""


def main(
    place: Annotated[Path | None, typer.Argument(help="A store or a folder of leaderboards/; default: --out.")] = None,
    out: Annotated[Path, typer.Option(help="The store.")] = Path("runs"),
    html: Annotated[Path | None, typer.Option(help="The page; default: report.html in --out-dir or the store.")] = None,
    figures: Annotated[Path | None, typer.Option(help="Folder for every figure as PNG and SVG.")] = None,
    out_dir: Annotated[
        Path | None, typer.Option(help="Folder for the page, figures/ and tables/ (csv, md, json, tex, RobustBench).")
    ] = None,
    filter_: Annotated[
        list[str] | None, typer.Option("--filter", help="NAME=VALUE[,VALUE], as in leaderboard.")
    ] = None,
    board: Annotated[
        Path | None,
        typer.Option(
            help="Instead, write the store as a board to keep: tables, records, small weights, README.md, CHANGES.md."
        ),
    ] = None,
    fill: Annotated[
        Path | None,
        typer.Option(help="Instead, rewrite the tables of a Markdown file between '<!-- board: FOLDER -->' and end."),
    ] = None,
    data_dir: o.DataDir = None,
) -> int:
    """Write the files and print their names."""
    if board or fill:
        from robobench.report.board_folder import publish
        from robobench.report.board_readme import fill_file

        if board:
            for left in publish(place or out, board):
                typer.echo(f"note: left out: {left}", err=True)
            print(board)
        if fill:
            fill_file(fill)
            print(fill)
        return 0
    from robobench.report.export import write
    from robobench.report.leaderboard import chosen
    from robobench.results.rows import read_rows

    where = place or out
    rows = chosen(read_rows(where), filter_ or ())
    for path in write(rows, where, html=html, figures=figures, out_dir=out_dir, data_dir=data_dir):
        print(path)
    return 0
