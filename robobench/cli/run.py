"""`robobench run`: train, time and attack one defense."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from robobench.cli import options as o
from robobench.errors import RequestError

if TYPE_CHECKING:
    from rich.console import Console

    from robobench.results.records import EvaluationRecord

HELP = "Train, time and attack one defense. Prints its accuracy matrices, and writes rows.csv."
EPILOG = """
Examples:

  robobench run trades

  robobench run --defense macd --model wrn50

  robobench run --defense trades --set trades.beta=3 --seeds 0,1,2

  robobench run --defense iad --teacher robust=runs/at-cnn-digits-s0-0123456789

  robobench run study.toml

  robobench run --defense macd --model wrn50 --preset paper --dataset cifar10 --dry-run
"""


@o.with_flags(o.RunFlags)
def main(
    flags: o.RunFlags,
    context: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(help="A name of `list defenses`, or an experiment file FILE.toml.", metavar="DEFENSE|FILE"),
    ] = None,
    defense: Annotated[str | None, typer.Option(help="The same as a flag.")] = None,
) -> int:
    """Run one defense."""
    if name is not None and name.endswith(".toml"):
        from robobench.cli.compare import run_study

        return run_study([name], () if defense is None else (defense,), flags, context, None)
    if (name is None) == (defense is None):
        raise RequestError(
            "name one defense, as in: robobench run --defense trades; known: see robobench list defenses"
        )

    def print_seeds(records: list[EvaluationRecord], console: Console) -> None:
        from robobench.report import comparison

        comparison.print_comparison(records, console, baseline=None)

    return o.execute(o.make_request(flags, defenses=(str(name or defense),)), flags, after=print_seeds)
