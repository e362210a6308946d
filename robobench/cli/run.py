"""`robobench run`: one defense, from training to matrix."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robobench.cli import options as o

if TYPE_CHECKING:
    from rich.console import Console

HELP = "Train one defense, clock every stage, attack the result, write the matrix."
EPILOG = """
Examples:

  robobench run --defense macd --model wrn50

  robobench run --defense trades --set trades.beta=3 --seeds 0,1,2

  robobench run --defense iad --teacher robust=runs/at-cnn-digits-s0-0123456789

  robobench run --defense macd --model wrn50 --preset paper --dataset cifar10 --dry-run
"""


def main(
    defense: Annotated[str, typer.Option(help="A name of `list defenses`.")],
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
    dry_run: o.DryRun = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> int:
    """Run one defense."""
    wanted = o.request(locals(), defenses=(defense,))

    def over_seeds(records: list[dict[str, Any]], console: Console) -> None:
        from robobench import comparison

        comparison.show(records, console, baseline=None)

    return o.execute(wanted, dry_run=dry_run, quiet=quiet, verbose=verbose, after=over_seeds)
