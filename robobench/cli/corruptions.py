"""`robobench corruptions`: accuracy under common corruptions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robobench.cli import options as o

if TYPE_CHECKING:
    from rich.table import Table

    from robobench.evaluation.corruptions import CorruptionAccuracy

HELP = """Measure accuracy under common corruptions.

There is no adversary and no radius: the mean is over kinds, severities and images, and its 95 % interval counts images,
not pictures. --folder reads CIFAR-10-C, CIFAR-100-C or ImageNet-C as published; without it the test images of --dataset
are corrupted at the severities of ImageNet-C.
"""
EPILOG = """
Examples:

  robobench corruptions at --folder CIFAR-10-C

  robobench corruptions weights.pth --model resnet18 --folder CIFAR-10-C --format json

  robobench corruptions --model timm:resnet50 --set run.pretrained=true --folder ImageNet-C --kinds fog,frost

  robobench corruptions at --examples 500
"""


def main(
    checkpoint: o.Checkpoint = None,
    folder: Annotated[Path | None, typer.Option(help="Unpacked folder of corrupted images.")] = None,
    kinds: Annotated[str | None, typer.Option(help="Comma-separated names; default: the 15 of the paper.")] = None,
    dataset: o.Dataset = "digits",
    model: o.Model = "cnn",
    preset: o.Preset = None,
    weights_key: o.WeightsKey = None,
    mean: o.Mean = None,
    std: o.Std = None,
    device: o.Device = "auto",
    threads: o.Threads = None,
    examples: o.Examples = None,
    image_size: o.ImageSize = None,
    set_: o.Sets = None,
    data_dir: o.DataDir = None,
    out: o.Out = Path("runs"),
    form: Annotated[str, typer.Option("--format", help="table or json.")] = "table",
) -> int:
    """Print the accuracy under every corruption; nothing is stored."""
    from robobench.core.registry import unknown_name

    if form not in ("table", "json"):
        raise unknown_name("format", form, ("table", "json"))
    import json

    from robobench.core.console import Reporter
    from robobench.interface import corruptions

    flags: Any = dict(dataset=dataset, model=model, preset=preset, mean=mean, std=std, examples=examples)
    flags |= dict(image_size=image_size, weights_key=weights_key, device=device, threads=threads)
    flags |= dict(sets=tuple(set_ or ()), data_dir=data_dir, out=out)
    with Reporter().heartbeat("corruptions: classifying"):
        found = corruptions(checkpoint, folder=folder, kinds=o.split_names(kinds), **flags)
    if form == "json":
        print(json.dumps(found.as_dict(), indent=1))
    else:
        _print(found)
    return 0


def _print(found: CorruptionAccuracy) -> None:
    from rich.console import Console

    console = Console()
    console.print(_table(found))
    low, high = found.interval
    text = (
        f"mean over {len(found.kinds)} kinds and 5 severities: {100 * found.accuracy:.1f} % of {found.examples} images"
    )
    console.print(f"{text} (95 % CI, by image: {100 * low:.1f} to {100 * high:.1f})", markup=False, highlight=False)


def _table(found: CorruptionAccuracy) -> Table:
    """Return accuracies in percent, one line per kind."""
    from rich import box
    from rich.table import Table

    severities = sorted({severity for _, severity in found.outcomes})
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("corruption", no_wrap=True)
    for name in (*map(str, severities), "mean"):
        table.add_column(name, justify="right")
    for kind in found.kinds:
        cells = [found.mean_of(kind, severity) for severity in severities] + [found.mean_of(kind)]
        table.add_row(kind, *(f"{100 * cell:.1f}" for cell in cells))
    table.add_section()
    cells = [found.mean_of(severity=severity) for severity in severities] + [found.accuracy]
    table.add_row("mean", *(f"{100 * cell:.1f}" for cell in cells))
    return table
