"""`robobench reproduce`: attack stored models again and compare the results with the records."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robobench.cli import options as o

if TYPE_CHECKING:
    from collections.abc import Sequence

    from robobench.results.records import EvaluationRecord

HELP = "Attack stored models again. Checks a sample of the recorded accuracies."
EPILOG = """
Examples:

  robobench reproduce leaderboards/cifar10-jpeg-resnet20 --sample 3 --data-dir DIR

  robobench reproduce leaderboards/cifar10-jpeg-resnet20 --filter defense=trades --filter attack=autoattack

  robobench reproduce runs --sample 0 --minutes 600

  robobench reproduce leaderboards/mine --sample 1 --retrain runs/reproduce
"""


def main(
    place: Annotated[Path, typer.Argument(help="A store, a folder of leaderboards/, or hf:OWNER/REPO.")],
    sample: Annotated[int, typer.Option(help="Number of random cells, of different attacks; 0: all.")] = 3,
    seed: Annotated[int, typer.Option(help="Seed of the sample.")] = 0,
    minutes: Annotated[
        float,
        typer.Option(help="Time limit for all cells; a cell that would exceed its share uses its first images only."),
    ] = 8.0,
    filter_: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            help="NAME=VALUE[,VALUE], as in leaderboard, or attack or protocol: draw only from the cells that match.",
        ),
    ] = None,
    retrain: Annotated[
        Path | None, typer.Option(help="Train the models again in this store, and attack those.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="FILE.py:FUNCTION that builds the models; a store never decides which code runs.")
    ] = None,
    device: o.Device = "auto",
    plugin: o.Plugins = None,
    data_dir: o.DataDir = None,
) -> int:
    """Print one line per cell; the exit status is 1 if one is not reproduced."""
    place = o.fetch_place(place)
    from robobench.execution.reproduce import Reproducer, cell_name
    from robobench.plugins.discovery import add_plugin_file
    from robobench.report.board_folder import stale_tables

    for file in plugin or ():
        add_plugin_file(file)
    reproducer = Reproducer(
        place,
        sample=sample,
        seed=seed,
        minutes=minutes,
        data_dir=data_dir,
        device=device,
        retrain=retrain,
        keep=lambda records: _filter_records(records, filter_ or ()),
        factory=model,
        warn=lambda text: typer.echo(f"warning: {text}", err=True),
    )
    typer.echo(f"{len(reproducer.cells)} cells: " + "; ".join(map(cell_name, reproducer.cells)), err=True)
    if reproducer.left_out:
        typer.echo(
            f"note: {reproducer.left_out} cells have no stored weights; --retrain STORE trains them again", err=True
        )
    stale = stale_tables(place)
    for file in stale:
        print(f"NOT REPRODUCED: {file} differs from the tables of the records")
    failed = 0
    for cell in reproducer:
        print(cell, flush=True)
        failed += not cell.reproduced
    print(f"{len(reproducer.cells) - failed} of {len(reproducer.cells)} cells reproduced")
    return int(failed > 0 or bool(stale))


def _filter_records(records: list[EvaluationRecord], filters: Sequence[str]) -> list[EvaluationRecord]:
    """Keep the records that match every filter; raises RequestError."""
    if not filters:
        return records
    import pandas as pd

    from robobench.report.leaderboard import CELL_FILTERS, filter_rows

    table = pd.DataFrame([{column: dict(r)[column] for column in CELL_FILTERS.values()} for r in records])
    return [records[number] for number in filter_rows(table, filters, CELL_FILTERS).index]
