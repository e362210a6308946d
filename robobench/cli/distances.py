"""`robobench distances`: accuracy at every radius, from one run of a minimum-norm attack."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robobench.cli import options as o

if TYPE_CHECKING:
    from robobench.evaluation.distances import Distances

HELP = """Measure accuracy at every radius, from one run of a minimum-norm attack.

The distance of an image to its closest adversarial example is an upper bound, and so is the accuracy at each radius.
Nothing is stored.
"""
EPILOG = """
Examples:

  robobench distances at --norm L2

  robobench distances weights.pth --model resnet18 --dataset cifar10 --norm Linf --radii 2/255,4/255,8/255

  robobench distances at --attack ddn --norm L2 --format csv > curve.csv

  robobench distances at --attack sigma-zero --norm L0 --radii 1,5,20
"""


def main(
    checkpoint: o.Checkpoint = None,
    attack: Annotated[str, typer.Option(help="A minimum-norm attack: fmn, ddn, fab-t or sigma-zero.")] = "fmn",
    radii: Annotated[str | None, typer.Option(help="Comma-separated; default: 21 up to the largest distance.")] = None,
    dataset: o.Dataset = "digits",
    model: o.Model = "cnn",
    preset: o.Preset = None,
    norm: Annotated[str, typer.Option(help="Linf, L2, L1, or L0: the number of changed values.")] = "L2",
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
    form: Annotated[str, typer.Option("--format", help="table, csv or json.")] = "table",
) -> int:
    """Print the accuracy at every radius."""
    from robobench.core.numbers import DISTANCE_NORMS, canonical_norm, parse_eps
    from robobench.core.registry import unknown_name
    from robobench.planning.precheck import check_request
    from robobench.planning.request import ExperimentConfig

    if form not in ("table", "csv", "json"):
        raise unknown_name("format", form, ("table", "csv", "json"))
    norm = canonical_norm(norm, DISTANCE_NORMS)
    chosen = [parse_eps(part.strip(), norm) for part in radii.split(",")] if radii else None
    shared = [text for text in set_ or () if text.startswith("run.")]
    own = [text for text in set_ or () if text not in shared]  # of the attack
    flags: dict[str, Any] = {"dataset": dataset, "model": model, "preset": preset, "mean": mean, "std": std}
    flags |= {"attacks": (attack,), "sets": tuple(set_ or ())}
    check_request(ExperimentConfig(**flags))  # before torch is imported
    from robobench.core.console import Reporter

    flags |= {"examples": examples, "image_size": image_size, "weights_key": weights_key, "device": device}
    flags |= {"threads": threads, "data_dir": data_dir, "out": out, "attacks": None, "sets": shared}
    with Reporter().heartbeat(f"distances: {attack}"):
        found = _measure(checkpoint, flags, attack=attack, norm=norm, sets=own)
    curve = found.curve(chosen)
    if form == "csv":
        print(curve.to_csv(index=False), end="")
    elif form == "json":
        print(curve.to_json(orient="records", indent=1))
    else:
        print(f"{attack}, {norm}, {len(found.values)} images; median distance {found.median:.4g}")
        for eps, accuracy, low, high in curve[["eps", "robust_accuracy", "ci_low", "ci_high"]].itertuples(index=False):
            print(f"eps {eps:<9.4g} at most {100 * accuracy:5.1f} % [{100 * low:.1f}, {100 * high:.1f}]")
    return 0


def _measure(checkpoint: str | None, flags: dict[str, Any], **attack: Any) -> Distances:
    """Load the model and the images of the flags, and run a minimum-norm attack."""
    import torch

    from robobench.interface import distances, open_model

    planner, module, _ = open_model(checkpoint, flags)
    test, device = planner.models.dataset.test, planner.settings.device
    count = min(flags["examples"] or len(test), len(test))
    images, labels = test.images(torch.arange(count)), test.labels[:count]
    batch_size = planner.settings.run.eval_batch_size
    return distances(module.to(device), images, labels, batch_size=batch_size, device=device, **attack)
