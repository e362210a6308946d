"""`robobench verify`: whether recorded figures hold."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from robobench.cli import options as o

HELP = "Attack stored networks again, a sample of their cells, and say whether the recorded figures hold."
EPILOG = """
Examples:

  robobench verify leaderboards/cifar10-jpeg-resnet20 --sample 3 --data-dir DIR

  robobench verify runs --sample 0 --minutes 600

  robobench verify leaderboards/mine --sample 1 --retrain runs/verify
"""


def main(
    place: Annotated[Path, typer.Argument(help="A folder of leaderboards/ or a store.")],
    sample: Annotated[int, typer.Option(help="Cells, drawn at random from different attacks; 0: all.")] = 3,
    seed: Annotated[int, typer.Option(help="Seed of the draw.")] = 0,
    minutes: Annotated[
        float,
        typer.Option(help="For all cells; one that took longer than its share of them sees its first images only."),
    ] = 8.0,
    retrain: Annotated[Path | None, typer.Option(help="Train the networks again first, in this store.")] = None,
    device: o.Device = "auto",
    plugin: o.Plugins = None,
    data_dir: o.DataDir = None,
) -> int:
    """Print a line a cell; the exit status is 1 if a figure does not hold."""
    from robobench import plugins
    from robobench.search import halvings
    from robobench.verify import Verifier, name, tables

    for file in plugin or ():
        plugins.add_file(file)
    chosen = Verifier(
        place, sample=sample, seed=seed, minutes=minutes, data_dir=data_dir, device=device, retrain=retrain
    )
    typer.echo(f"{len(chosen.cells)} cells: " + "; ".join(map(name, chosen.cells)), err=True)
    if chosen.left_out:
        typer.echo(f"note: {chosen.left_out} cells have no weights here; --retrain STORE trains them", err=True)
    wrong = tables(place)
    for file in wrong:
        print(f"FAILS: {file} is not what the records give")
    failed = 0
    with halvings(lambda: typer.echo("warning: a chunk of images does not fit into memory; halved", err=True)):
        for found in chosen:
            print(found, flush=True)
            failed += not found.holds
    print(f"{len(chosen.cells) - failed} of {len(chosen.cells)} figures hold")
    return int(failed > 0 or bool(wrong))
