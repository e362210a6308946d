"""`robobench report`: write a store as an HTML page, figures, tables, or a snapshot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robobench.cli import options as o
from robobench.errors import RequestError

if TYPE_CHECKING:
    import pandas as pd

HELP = "Write the report of a store. One HTML file that works offline; figures and tables on request."
EPILOG = """
Examples:

  robobench report

  robobench report runs --html results.html --figures figures

  robobench report --export paper

  robobench report runs --snapshot leaderboards/my-setting

  robobench report --study redo.toml

  robobench report --update-tables README.md
"""


def main(
    place: Annotated[Path | None, typer.Argument(help="A store, snapshot or hf:OWNER/REPO; default: --out.")] = None,
    out: Annotated[Path, typer.Option(help="The store.")] = Path("runs"),
    html: Annotated[
        Path | None, typer.Option(help="File for the page; default: report.html in --export or the store.")
    ] = None,
    figures: Annotated[Path | None, typer.Option(help="Folder for the figures as PNG and SVG.")] = None,
    export: Annotated[
        Path | None, typer.Option(help="Folder for the page, figures/ and tables/ (csv, md, json, tex, RobustBench).")
    ] = None,
    filter_: Annotated[
        list[str] | None, typer.Option("--filter", help="NAME=VALUE[,VALUE], as in leaderboard.")
    ] = None,
    snapshot: Annotated[
        Path | None,
        typer.Option(
            help="Write only a snapshot of the store into this folder: tables, records, small weights, README.md, "
            "CHANGES.md."
        ),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="With --snapshot: defenses whose weights it includes; default: all.")
    ] = None,
    update_tables: Annotated[
        Path | None,
        typer.Option(
            help="Update only the tables of this Markdown file, between '<!-- board: FOLDER -->' and '<!-- end -->'."
        ),
    ] = None,
    study: Annotated[
        Path | None,
        typer.Option(help="Write only an experiment file that makes the results of the store again: FILE.toml."),
    ] = None,
    data_dir: o.DataDir = None,
) -> int:
    """Write the files and print their names."""
    if (local := o.fetch_place(place)) != place:
        place, html = local, html or (None if export else Path("report.html"))  # not into the cache
    if study:
        _write_study(place or out, study)
        return 0
    if weights is not None and snapshot is None:
        raise RequestError("--weights chooses what a snapshot includes; give --snapshot FOLDER too")
    if snapshot or update_tables:
        _write_board(place or out, snapshot, o.split_names(weights), update_tables)
        return 0
    from robobench.report.export import write_report

    store = place or out
    chosen, keys = _choose(store, filter_ or ())
    for path in write_report(chosen, store, html=html, figures=figures, export=export, data_dir=data_dir, keys=keys):
        print(path)
    return 0


def _choose(store: Path, filters: Sequence[str]) -> tuple[pd.DataFrame, set[str] | None]:
    """Return the rows that pass the filters, and the keys of the records that a page of them needs; None: all."""
    from robobench.report.leaderboard import filter_rows
    from robobench.results.rows import read_rows

    origin = ["_key", "_training"] if filters else []
    rows = read_rows(store, origin)
    chosen = filter_rows(rows, filters)
    if "_key" not in chosen:
        return chosen, None
    keys = set(rows.loc[rows["_training"].isin(set(chosen["_training"])), "_key"])
    return chosen.drop(columns=origin), keys


def _write_board(store: Path, snapshot: Path | None, weights: Sequence[str] | None, page: Path | None) -> None:
    """Write the snapshot and update the tables of a page, whichever is given, and print their names."""
    from robobench.report.board_folder import write_snapshot
    from robobench.report.board_readme import update_file

    if snapshot:
        for line in write_snapshot(store, snapshot, weights_of=weights):
            typer.echo(f"note: left out: {line}", err=True)
        print(snapshot)
    if page:
        update_file(page)
        print(page)


def _write_study(store: Path, file: Path) -> None:
    """Write the experiment file of a store and print its name."""
    from robobench.core.paths import check_writable
    from robobench.planning.repro_command import ReproCommands
    from robobench.planning.study_file import study_text
    from robobench.results.rows import read_rows
    from robobench.store.artifacts import write_atomic

    read_rows(store)  # refuses a folder without results
    check_writable(file.parent, "--study")
    write_atomic(file, study_text(ReproCommands(store), store.resolve().name))
    print(file)
