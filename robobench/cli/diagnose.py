"""`robobench diagnose`: check a model for gradient masking."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robobench.cli import options as o
from robobench.errors import RequestError

MIN_EXAMPLES = 10  # fewer images say nothing
VERDICT_EXAMPLES = 100

if TYPE_CHECKING:
    from rich.table import Table

    from robobench.evaluation.diagnostics import Diagnosis

HELP = """Check a model for gradient masking.

Ends with a verdict in a sentence. Uses the first 128 test images by default (--examples), and adds every gradient-free
attack to --attacks. For a model from the store, --model, --dataset and --preset are those it was trained with.
"""
EPILOG = """
Examples:

  robobench diagnose macd

  robobench diagnose weights.safetensors --model resnet18 --dataset cifar10

  robobench diagnose --model my_nets.py:trained --dataset npz:mine.npz --preset cifar --format json
"""

Sources = Annotated[
    list[str] | None,
    typer.Option(help="MODEL or MODEL=WEIGHTS for the transfer check; several: the mean of their logits."),
]


def main(
    checkpoint: Annotated[
        str | None,
        typer.Argument(
            help="Name of a model in the store, a weights file or hf:OWNER/REPO. Not needed if --model loads weights."
        ),
    ] = None,
    dataset: o.Dataset = "digits",
    model: o.Model = "cnn",
    preset: o.Preset = None,
    transfer_source: Sources = None,
    weights_key: o.WeightsKey = None,
    mean: o.Mean = None,
    std: o.Std = None,
    device: o.Device = "auto",
    threads: o.Threads = None,
    attacks: o.Attacks = None,
    norm: o.Norm = "Linf",
    eps: o.Eps = None,
    examples: o.Examples = None,
    image_size: o.ImageSize = None,
    set_: o.Sets = None,
    plugin: o.Plugins = None,
    data_dir: o.DataDir = None,
    out: o.Out = Path("runs"),
    form: Annotated[str, typer.Option("--format", help="table or json (with loss and success per step).")] = "table",
) -> int:
    """Print the result of every check; nothing is stored."""
    from robobench.core.registry import unknown_name

    if form not in ("table", "json"):
        raise unknown_name("format", form, ("table", "json"))
    import json

    from robobench.planning.precheck import check_request
    from robobench.planning.request import ExperimentConfig

    if examples is not None and examples < MIN_EXAMPLES:
        raise RequestError(f"--examples {examples} is too few for a diagnosis; use {MIN_EXAMPLES} or more")
    flags: Any = dict(dataset=dataset, model=model, preset=preset, norm=norm, mean=mean, std=std, eps=tuple(eps or ()))
    flags |= dict(attacks=o.split_names(attacks), sets=tuple(set_ or ()), plugins=tuple(plugin or ()))
    check_request(ExperimentConfig(**flags))  # before torch is imported
    from robobench.core.console import Reporter
    from robobench.interface import diagnose

    flags |= dict(examples=examples, image_size=image_size, weights_key=weights_key, device=device, threads=threads)
    reporter, now = Reporter(), ["loading the model and the data"]

    def on_check(what: str) -> None:
        now[0] = what
        reporter.info(f"diagnose: {what}")

    with reporter.heartbeat(lambda: f"diagnose: {now[0]}"):
        flags |= dict(transfer_source=transfer_source, data_dir=data_dir, out=out)
        found = diagnose(checkpoint, on_check=on_check, **flags)
    if form == "json":
        print(json.dumps(found.as_dict(), indent=1))
    else:
        _print(found)
    return 0


def _print(found: Diagnosis) -> None:
    """Print a table of the checks, and the threshold and next step of every raised one."""
    from rich.console import Console

    console = Console()
    console = console if console.is_terminal else Console(width=160)
    console.print(_table(found))
    for f in found.findings:
        if f.raised:
            console.print(f"{f.check.name}: raised by {f.check.threshold} ({f.check.source})", markup=False)
            console.print(f"  next: {f.check.next_step}", markup=False)
    console.print(verdict(found), markup=False, highlight=False, soft_wrap=True)


def verdict(found: Diagnosis) -> str:
    """Say in a sentence or two what the checks mean for the measured robust accuracy."""
    made = sum(f.raised is not None for f in found.findings)
    if found.flags:
        text = (
            f"Verdict: signs of gradient masking in {len(found.flags)} of {made} checks ({', '.join(found.flags)}). "
            "Do not report a robust accuracy of this model before the next steps above."
        )
    else:
        text = (
            f"Verdict: none of {made} checks shows a sign of gradient masking. Robust accuracy remains an upper bound; "
            "an attack made for this model may lower it."
        )
    if found.examples < VERDICT_EXAMPLES:
        text += f" {found.examples} images are few; use {VERDICT_EXAMPLES} or more for a firm verdict."
    return text


def _table(found: Diagnosis) -> Table:
    """Return a table with one line per check."""
    from rich import box
    from rich.table import Table

    title = f"{found.examples} images, {100 * found.clean_accuracy:.1f} % correct when clean; flags: "
    title += ", ".join(found.flags) or "none"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for name in ("check", "", "measured"):
        table.add_column(name, no_wrap=name != "measured")
    for f in found.findings:
        table.add_row(f.check.name, {True: "FLAG", False: "ok", None: "-"}[f.raised], f.measured)
    return table
