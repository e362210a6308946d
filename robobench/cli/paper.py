"""`robobench paper`: print the MACD paper's tables, rerun them, and draw its figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from robobench.cli import options as o

HELP = "Show and rerun the MACD paper's tables. Published numbers, and robobench's beside them."
EPILOG = """
Examples:

  robobench paper list

  robobench paper table 2 --format md

  robobench paper run 7

  robobench paper run all --rows rows.csv

  robobench paper run all --format json > tables.json

  robobench paper summary tables.json --format md

  robobench paper run 2 --preset paper --dry-run

  robobench paper figure 2 --out figure2.png
"""
Table = Annotated[str, typer.Argument(help="1 to 9, or times.")]
Form = Annotated[str, typer.Option("--format", help="table, md, csv, json, latex or html.")]
Scale = Annotated[str, typer.Option("--preset", help="quick (digits), cifar (few images) or paper (full).")]

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help=HELP, epilog=EPILOG)


@app.command("list", help="List the tables and figures.")
def list_tables() -> int:
    """Print one line per table and figure to stdout."""
    from robobench.paper import published

    for table in published.TABLES:
        print(f"{table:<6}{published.title(table)} ({len(published.records(table))} numbers)")
    for name, description in published.FIGURES.items():
        print(f"figure {name:<4}{description}")
    return 0


@app.command("table", help="Print a published table with corrections.")
def table(table: Table, form: Form = "table") -> int:
    """Print one table to stdout."""
    from robobench.paper.formatting import published_table

    print(published_table(table, form), end="")
    return 0


@app.command("run", help="Run a table and compare with the published numbers.")
def run(
    table: Annotated[str, typer.Argument(help="1 to 9, times, or all.")],
    preset: Scale = "quick",
    device: o.Device = "auto",
    precision: o.Precision = "auto",
    compile: o.Compile = "auto",
    threads: o.Threads = None,
    examples: o.Examples = None,
    epochs: o.Epochs = None,
    set_: o.Sets = None,
    data_dir: o.DataDir = None,
    out: o.Out = Path("runs"),
    executor: o.Executor = "serial",
    address: o.Address = None,
    gpus_per_task: o.GpusPerTask = None,
    slurm: o.Slurm = None,
    rows: Annotated[Path | None, typer.Option(help="Write the result rows of the tables to this CSV file.")] = None,
    form: Form = "table",
    dry_run: o.DryRun = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> int:
    """Run one table, or all of them, and print each to stdout."""
    from robobench.core.console import Reporter
    from robobench.paper import published
    from robobench.paper.requests import Scale
    from robobench.paper.run import run_tables

    tables = published.TABLES if table == "all" else (published.check_table(table),)
    scale = Scale.load(preset, data_dir)
    base = o.make_request(locals())
    reporter = Reporter(-1 if quiet else int(verbose))
    return run_tables(tables, scale, base, reporter, form=form, rows_file=rows, dry_run=dry_run)


@app.command("summary", help="Print all tables of a run as one, one line per model.")
def summary(
    file: Annotated[Path, typer.Argument(help="Output of `paper run all --format json`.")], form: Form = "table"
) -> int:
    """Print one table to stdout."""
    from robobench.paper.summary import one_table, read

    print(one_table(read(file), form), end="")
    return 0


@app.command("figure", help="Draw a figure. Results that the store lacks are computed first.")
def figure(
    name: Annotated[str, typer.Argument(help="2, 6 or eps.")],
    out: Annotated[Path, typer.Option(help="Image file to write: .png, .pdf or .svg.")],
    store: Annotated[Path, typer.Option(help="The store with the results; missing ones are added.")] = Path("runs"),
    preset: Scale = "quick",
    device: o.Device = "auto",
    precision: o.Precision = "auto",
    compile: o.Compile = "auto",
    threads: o.Threads = None,
    examples: o.Examples = None,
    epochs: o.Epochs = None,
    set_: o.Sets = None,
    data_dir: o.DataDir = None,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> int:
    """Draw one figure into a file."""
    from robobench.core.console import Reporter
    from robobench.paper import figures
    from robobench.paper.requests import Scale

    scale = Scale.load(preset, data_dir)
    base = o.make_request({**locals(), "out": store})
    figures.plot_figure(name, scale, base, out, Reporter(-1 if quiet else int(verbose)))
    return 0
