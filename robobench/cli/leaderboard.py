"""`robobench leaderboard`: rank the models of a store or snapshot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robobench.cli import options as o

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

STORE = Path("runs")

HELP = "Rank models by white-box worst case. Every setting has its own leaderboard."
FILTER_HELP = "NAME=VALUE[,VALUE]: dataset, model, preset, defense, seed, norm, eps, precision, hardware, examples."
EPILOG = """
Examples:

  robobench leaderboard

  robobench leaderboard --sort total_train_seconds --filter dataset=cifar10 --filter eps=8/255

  robobench leaderboard --by defense --format latex > table.tex

  robobench leaderboard --format md > results.md

  robobench leaderboard leaderboards/cifar10-jpeg-resnet20

  robobench leaderboard --union Linf:8/255,L2:0.5,L1:12

  robobench leaderboard leaderboards/cifar10-jpeg-resnet20 --baseline at

  robobench leaderboard hf:OWNER/REPO

  robobench leaderboard --published cifar10-Linf
"""


def main(
    place: Annotated[
        Path | None,
        typer.Argument(
            help="A store, snapshot or hf:OWNER/REPO; default: --out, or robobench's own snapshots if there is no "
            "store. With --published, the name of a leaderboard."
        ),
    ] = None,
    published: Annotated[
        bool,
        typer.Option("--published", help="Show the results published by RobustBench; robobench did not measure them."),
    ] = False,
    out: Annotated[Path, typer.Option(help="The store.")] = STORE,
    form: Annotated[
        str, typer.Option("--format", help="table, md, csv, latex, json, html or robustbench (their model_info).")
    ] = "table",
    sort: Annotated[
        str,
        typer.Option(
            help="worst, clean, transfer, gap (transfer - white-box), train_seconds, total_train_seconds, "
            "train_cpu_seconds, total_train_cpu_seconds, train_forwards, total_train_forwards, train_flops, "
            "total_train_flops or defense."
        ),
    ] = "worst",
    filter_: Annotated[list[str] | None, typer.Option("--filter", help=FILTER_HELP)] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated: the names of --sort, or rank, model, ci, flags, preset, seed, n, precision, "
            "hardware; in every format."
        ),
    ] = None,
    wide: Annotated[bool, typer.Option("--wide", help="Every column.")] = False,
    union: Annotated[
        str | None,
        typer.Option(help="NORM:EPS,NORM:EPS: rank by accuracy under all of them at once, image by image."),
    ] = None,
    by: Annotated[
        str, typer.Option(help="model, or defense: one line for all seeds, mean ± standard deviation.")
    ] = "model",
    baseline: Annotated[
        str | None,
        typer.Option(help="A defense: show gains over it with p-values, costs as multiples, all kinds of weights."),
    ] = None,
) -> int:
    """Print the leaderboards to stdout."""
    if published:
        return _print_published(str(place) if place else None)
    if union is not None:
        return _print_union(o.fetch_place(place, weights=False) or out, union, form, columns)
    if baseline is not None:
        return _print_gains(o.fetch_place(place, weights=False) or out, baseline, form, filter_ or ())
    from robobench.report.leaderboard_formats import leaderboard

    rows, note = _read_rows(o.fetch_place(place, weights=False), out)
    chosen = o.split_names(columns)
    print(leaderboard(rows, form, sort=sort, filters=filter_ or (), columns=chosen, wide=wide, by=by), end="")
    if note:
        typer.echo(note, err=True)
    return 0


def _read_rows(place: Path | None, out: Path) -> tuple[pd.DataFrame, str]:
    """Read the rows of `place`, else of the store, else of the snapshots that come with robobench.

    Returns:
        The rows, and a note for the user ("" if there is none).
    """
    import pandas as pd

    from robobench.results.rows import bundled_boards, damaged_records, read_rows

    boards = bundled_boards()
    if place is None and out == STORE and not out.exists() and boards:
        names = ", ".join(board.name for board in boards)
        note = f"note: no store in '{out}'; showing the results that come with robobench ({names})"
        return pd.concat([read_rows(board) for board in boards], ignore_index=True), note
    damaged = damaged_records(place or out)
    note = f"note: {len(damaged)} damaged records are left out ({', '.join(damaged[:3])}); rerun their command"
    return read_rows(place or out), note if damaged else ""


def _print_gains(place: Path, baseline: str, form: str, filters: Sequence[str]) -> int:
    """Print every model beside a baseline."""
    from robobench.report.gains import gains
    from robobench.results.rows import read_records

    print(gains(read_records(place), baseline, form, filters), end="")
    return 0


def _print_union(place: Path, text: str, form: str, columns: str | None) -> int:
    """Print the models ranked by accuracy under the union of some threats."""
    from robobench.core.registry import unknown_name
    from robobench.errors import RequestError
    from robobench.results.rows import read_records
    from robobench.results.union import parse_threats, union_rows

    if form not in ("table", "csv", "json"):
        raise unknown_name("format of --union", form, ("table", "csv", "json"))
    if columns is not None:
        raise RequestError("--union has columns of its own; leave --columns out")
    rows = union_rows(read_records(place), parse_threats(text))
    if form == "csv":
        print(rows.to_csv(index=False), end="")
    elif form == "json":
        print(rows.to_json(orient="records", indent=1))
    else:
        from robobench.report.union import render_union

        _wide_console().print(render_union(rows))
    return 0


def _wide_console() -> Console:
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=200)


def _print_published(name: str | None) -> int:
    from robobench.report.robustbench import published_leaderboards, render_published

    console = _wide_console()
    for leaderboard, entries in published_leaderboards(name).items():
        console.print(render_published(leaderboard, entries))
    return 0
