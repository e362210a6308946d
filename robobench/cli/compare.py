"""`robobench compare`: several defenses side by side; what is missing is run, the rest reused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from robobench.cli import options as o

if TYPE_CHECKING:
    from rich.console import Console

    from robobench.results.records import EvaluationRecord

HELP = "Compare defenses: what is missing is trained and attacked, the rest is reused."
EPILOG = """
Examples:

  robobench compare

  robobench compare at trades

  robobench compare --defenses standard,at,trades,macd --seeds 0,1,2

  robobench compare --defenses at,trades,macd --model resnet18 --dataset cifar10

  robobench compare --defenses at,trades,macd --baseline at

  robobench compare --executor ray --threads 1
"""


@o.with_flags(o.RunFlags)
def main(
    flags: o.RunFlags,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Defenses, as in --defenses; of two, the first is the baseline."),
    ] = None,
    defenses: Annotated[str | None, typer.Option(help="Comma-separated names; default: all.")] = None,
    baseline: Annotated[
        str | None, typer.Option(help="Compare the others with this defense, image by image; of two: the first.")
    ] = None,
) -> int:
    """Run several defenses."""
    from robobench.core.registry import unknown_name
    from robobench.errors import RequestError
    from robobench.plugins.discovery import add_plugin_file, discover

    if names and defenses:
        raise RequestError(
            f"'{names[0]}' is given beside --defenses {defenses}; name the defenses in one of the two ways"
        )
    for file in flags.plugin or ():
        add_plugin_file(file)
    chosen = o.split_names(",".join(names) if names else defenses) or tuple(discover("defense"))
    if baseline is not None and baseline not in chosen:
        raise unknown_name("baseline", baseline, chosen)

    def print_comparison(records: list[EvaluationRecord], console: Console) -> None:
        from robobench.report import comparison

        comparison.show(records, console, baseline or (chosen[0] if len(chosen) == 2 else None))
        if baseline is None and len(chosen) > 2:
            console.print(
                f"paired differences with p-values: --baseline {chosen[0]}, or another of these", markup=False
            )

    return o.execute(o.make_request(flags, defenses=chosen), flags, after=print_comparison)
