"""`robobench score`: score submitted adversarial images on a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robobench.cli import options as o

if TYPE_CHECKING:
    from robobench.evaluation.score import Score

HELP = """Score submitted adversarial images on a model: ball, [0, 1] and success of each image.

Image i of the file belongs to test image i. An image outside the ball or [0, 1] counts as a failed attack, with the
reason, and the exit status is 1; no image is projected or clipped. Nothing is stored.
"""
EPILOG = """
Examples:

  robobench score adv.pt weights.safetensors --model resnet18 --dataset cifar10 --eps 8/255

  robobench score adv.safetensors --model robustbench:Wong2020Fast --dataset cifar10 --norm Linf --eps 8/255

  robobench score adv.npz at --norm L2 --eps 0.5 --json score.json
"""


def main(
    file: Annotated[Path, typer.Argument(help="Images as .npz, .npy, .safetensors, .pt or .pth.")],
    checkpoint: o.Checkpoint = None,
    dataset: o.Dataset = "digits",
    model: o.Model = "cnn",
    preset: o.Preset = None,
    norm: o.Norm = "Linf",
    eps: Annotated[str | None, typer.Option(help="Radius of the ball; default: the first of the data set.")] = None,
    verdict: Annotated[
        str | None, typer.Option(help="K/N, for random outputs: misclassified if K of N passes are wrong.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the score as JSON.")] = None,
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
) -> int:
    """Print the score of a file."""
    from robobench.core.numbers import canonical_norm, parse_eps
    from robobench.core.paths import check_writable
    from robobench.core.randomness import Randomness
    from robobench.planning.precheck import check_request
    from robobench.planning.request import ExperimentConfig

    flags: dict[str, Any] = {"dataset": dataset, "model": model, "preset": preset, "mean": mean, "std": std}
    flags["sets"] = tuple(set_ or ())
    check_request(ExperimentConfig(**flags))  # before torch is imported
    norm = canonical_norm(norm)
    if eps is not None:
        parse_eps(eps, norm)
    Randomness.parse(None, verdict)
    if json_file is not None:
        check_writable(json_file.parent, "--json")
    from robobench.interface import score

    flags |= {"examples": examples, "image_size": image_size, "weights_key": weights_key, "device": device}
    flags |= {"threads": threads, "data_dir": data_dir, "out": out}
    found = score(file, checkpoint, norm=norm, eps=eps, verdict=verdict, **flags)
    if json_file is not None:
        from robobench.store.artifacts import write_atomic

        write_atomic(json_file, json.dumps(found.as_dict(), indent=1) + "\n")
    for line in describe(found):
        print(line)
    for note in found.notes:
        typer.echo(f"note: {note}", err=True)
    return int(any(found.reasons))


def describe(found: Score) -> list[str]:
    """Say in a few lines what was measured."""
    values = found.as_dict()
    count, low, high = values["images"], 100 * values["ci_low"], 100 * values["ci_high"]
    refused = sum(values["refused"].values())
    lines = [
        f"clean accuracy: {100 * values['clean_accuracy']:.2f} % of {count} images",
        f"valid images: {count - refused} of {count} in {found.threat} and [0, 1]; largest distance "
        f"{values['largest_distance']:.6g}",
    ]
    lines += [f"{number} images are {reason}: counted as failed" for reason, number in values["refused"].items()]
    lines += [
        f"successes: {values['successes']} of {int(found.clean.sum())} images that are correct when clean",
        f"robust accuracy: at most {100 * values['robust_accuracy']:.2f} % [{low:.2f}, {high:.2f}]",
    ]
    return lines
