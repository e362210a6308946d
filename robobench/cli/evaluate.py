"""`robobench evaluate`: attacks a model that was trained elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robobench.cli import options as o

if TYPE_CHECKING:
    from rich.console import Console

    from robobench.planning.plan import Plan
    from robobench.results.records import EvaluationRecord

HELP = "Attack a model trained elsewhere. With --transfer-source, transfer examples are used too."
EPILOG = """
Examples:

  robobench evaluate weights.safetensors --model resnet18 --dataset cifar10

  robobench evaluate --model my_nets.py:trained --dataset npz:mine.npz --preset cifar

  robobench evaluate --model robustbench:Wong2020Fast --dataset cifar10 --attacks autoattack --model-info fast.json

  robobench evaluate weights.pth --model resnet18 --dataset cifar10 --transfer-source resnet18=plain.pth
"""


@o.with_flags(o.EvaluateFlags)
def main(
    flags: o.EvaluateFlags,
    weights: Annotated[
        Path | None, typer.Argument(help="safetensors or a state dict; none if the factory loads its own.")
    ] = None,
    transfer_source: Annotated[
        str | None, typer.Option(help="MODEL or MODEL=WEIGHTS to make transfer examples on.")
    ] = None,
    weights_key: o.WeightsKey = None,
    mean: Annotated[
        str | None,
        typer.Option(help="Normalization of the model, such as 0.5,0.5,0.5; added as its first layer."),
    ] = None,
    std: Annotated[str | None, typer.Option(help="Normalization of the model.")] = None,
    model_info: Annotated[
        Path | None, typer.Option(help="Write RobustBench's JSON here; a description already in it is kept.")
    ] = None,
) -> int:
    """Evaluate one model."""
    protocol = "both" if transfer_source else "white-box"
    own = {"weights": weights, "transfer_source": transfer_source, "mean": mean, "std": std}
    own["weights_key"] = weights_key
    request = o.make_request(flags, protocol=protocol, external=True, **own)
    if model_info is None:
        return o.execute(request, flags)

    def write(records: list[EvaluationRecord], console: Console) -> None:
        from robobench.report.robustbench import write_model_info
        from robobench.results.rows import group_by_model, make_rows

        write_model_info([row for group in group_by_model(records).values() for row in make_rows(group)], model_info)

    def check_plan(plan: Plan) -> None:
        from robobench.report.robustbench import check_model_info

        check_model_info(plan)

    return o.execute(request, flags, after=write, check_plan=check_plan)
