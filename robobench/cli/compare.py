"""`robobench compare`: several defenses side by side; what is missing is run, the rest reused."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from robobench.cli import options as o

HELP = "Put defenses side by side: what is missing is trained and attacked, the rest reused."
EPILOG = """
Examples:

  robobench compare

  robobench compare --defenses standard,at,trades,macd --seeds 0,1,2

  robobench compare --defenses at,trades,macd --model resnet18 --dataset cifar10
"""


def main(
    defenses: Annotated[str | None, typer.Option(help="Comma-separated names; all of them if left out.")] = None,
    dataset: o.Dataset = "digits",
    model: o.Model = "cnn",
    preset: o.Preset = None,
    seed: o.Seed = 0,
    seeds: o.Seeds = None,
    device: o.Device = "auto",
    precision: o.Precision = "auto",
    threads: o.Threads = None,
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
    plugin: o.Plugins = None,
    data_dir: o.DataDir = None,
    out: o.Out = Path("runs"),
    checkpoint_every: o.CheckpointEvery = 5.0,
    fresh: o.Fresh = False,
    dry_run: o.DryRun = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> int:
    """Run several defenses."""
    from robobench import plugins

    for file in plugin or ():
        plugins.add_file(file)
    chosen = o.names(defenses) or tuple(plugins.found("defense"))
    wanted = o.request(locals(), defenses=chosen)
    return o.execute(wanted, dry_run=dry_run, quiet=quiet, verbose=verbose)
