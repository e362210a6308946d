"""`robobench evaluate`: somebody else's network under the same attacks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robobench.cli import options as o

if TYPE_CHECKING:
    from rich.console import Console

    from robobench.plan import Plan

HELP = "Attack a network you bring: white-box, and transfer where --source names where examples are made."
EPILOG = """
Examples:

  robobench evaluate weights.safetensors --model resnet18 --dataset cifar10

  robobench evaluate --model my_nets.py:trained --dataset npz:mine.npz --preset cifar

  robobench evaluate --model robustbench:Wong2020Fast --dataset cifar10 --attacks autoattack --model-info fast.json

  robobench evaluate weights.pth --model resnet18 --dataset cifar10 --source resnet18=plain.pth
"""


def main(
    weights: Annotated[
        Path | None, typer.Argument(help="safetensors or a state dict; none if the factory brings its own.")
    ] = None,
    dataset: o.Dataset = "digits",
    model: o.Model = "cnn",
    preset: o.Preset = None,
    source: Annotated[str | None, typer.Option(help="MODEL or MODEL=WEIGHTS to make transfer examples on.")] = None,
    mean: Annotated[
        str | None,
        typer.Option(help="Normalization of the network, such as 0.5,0.5,0.5; adds it as first layer."),
    ] = None,
    std: Annotated[str | None, typer.Option(help="Normalization of the network.")] = None,
    model_info: Annotated[
        Path | None, typer.Option(help="Write RobustBench's JSON here; a description already in it is kept.")
    ] = None,
    device: o.Device = "auto",
    precision: o.Precision = "auto",
    threads: o.Threads = None,
    devices: o.Devices = 1,
    attacks: o.Attacks = None,
    norm: o.Norm = "Linf",
    eps: o.Eps = None,
    examples: o.Examples = None,
    set_: o.Sets = None,
    plugin: o.Plugins = None,
    data_dir: o.DataDir = None,
    out: o.Out = Path("runs"),
    fresh: o.Fresh = False,
    dry_run: o.DryRun = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> int:
    """Evaluate one network."""
    wanted = o.request(
        locals(), protocol="both" if source else "white-box", weights=weights, external=True, source=source
    )
    if model_info is None:
        return o.execute(wanted, dry_run=dry_run, quiet=quiet, verbose=verbose)
    file = model_info

    def write(records: list[dict[str, Any]], console: Console) -> None:
        from robobench import published, results

        rows = [row for group in results.networks(records).values() for row in results.rows_of(group)]
        published.write_model_info(rows, file)

    def check(plan: Plan) -> None:
        from robobench import published

        published.check_model_info(plan)

    return o.execute(wanted, dry_run=dry_run, quiet=quiet, verbose=verbose, after=write, check=check)
