"""`robobench compare`: several defenses side by side; what is missing is run, the rest reused."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robobench.cli import options as o

if TYPE_CHECKING:
    from rich.console import Console

HELP = "Put defenses side by side: what is missing is trained and attacked, the rest reused."
EPILOG = """
Examples:

  robobench compare

  robobench compare at trades

  robobench compare --defenses standard,at,trades,macd --seeds 0,1,2

  robobench compare --defenses at,trades,macd --model resnet18 --dataset cifar10

  robobench compare --defenses at,trades,macd --baseline at

  robobench compare --executor ray --threads 1
"""


def main(
    named: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Defenses, as in --defenses; of two, the first is the baseline."),
    ] = None,
    defenses: Annotated[str | None, typer.Option(help="Comma-separated names; all of them if left out.")] = None,
    baseline: Annotated[
        str | None, typer.Option(help="The defense the others are compared with, image by image; of two: the first.")
    ] = None,
    dataset: o.Dataset = "digits",
    model: o.Model = "cnn",
    preset: o.Preset = None,
    seed: o.Seed = 0,
    seeds: o.Seeds = None,
    device: o.Device = "auto",
    precision: o.Precision = "auto",
    compile: o.Compile = "auto",
    threads: o.Threads = None,
    devices: o.Devices = 1,
    attacks: o.Attacks = None,
    norm: o.Norm = "Linf",
    eps: o.Eps = None,
    train_norm: o.TrainNorm = None,
    train_eps: o.TrainEps = None,
    protocol: o.Protocol = "both",
    examples: o.Examples = None,
    epochs: o.Epochs = None,
    batch_size: o.BatchSize = None,
    set_: o.Sets = None,
    teacher: o.Teachers = None,
    plugin: o.Plugins = None,
    data_dir: o.DataDir = None,
    out: o.Out = Path("runs"),
    checkpoint_every: o.CheckpointEvery = 5.0,
    fresh: o.Fresh = False,
    executor: o.Executor = "serial",
    address: o.Address = None,
    gpus_per_task: o.GpusPerTask = None,
    dry_run: o.DryRun = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> int:
    """Run several defenses."""
    from robobench import plugins
    from robobench.errors import RequestError
    from robobench.registry import unknown

    if named and defenses:
        raise RequestError(
            f"'{named[0]}' stands beside --defenses {defenses}; name the defenses in one of the two ways"
        )
    for file in plugin or ():
        plugins.add_file(file)
    chosen = o.names(",".join(named) if named else defenses) or tuple(plugins.found("defense"))
    wanted = o.request(locals(), defenses=chosen)
    if baseline is not None and baseline not in chosen:
        raise unknown("baseline", baseline, chosen)

    def paired(records: list[dict[str, Any]], console: Console) -> None:
        from robobench import comparison

        comparison.show(records, console, baseline or (chosen[0] if len(chosen) == 2 else None))
        if baseline is None and len(chosen) > 2:
            console.print(f"image by image, with p-values: --baseline {chosen[0]}, or another of these", markup=False)

    return o.execute(wanted, dry_run=dry_run, quiet=quiet, verbose=verbose, after=paired)
