"""`robobench compare`: several defenses side by side. Only what the store lacks is run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from robobench.cli import options as o

if TYPE_CHECKING:
    from rich.console import Console

    from robobench.results.records import EvaluationRecord

HELP = "Train and attack several defenses. Results that the store has are reused."
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
        list[str] | None, typer.Argument(help="Names of `list defenses`; default: all.", metavar="[DEFENSE]...")
    ] = None,
    defenses: Annotated[str | None, typer.Option(help="The same as a flag, comma-separated.")] = None,
    baseline: Annotated[
        str | None, typer.Option(help="Print paired differences to this defense; default: the first of two.")
    ] = None,
) -> int:
    """Run several defenses."""
    from robobench.core.registry import match_name, unknown_name
    from robobench.plugins.discovery import add_plugin_file, discover

    for file in flags.plugin or ():
        add_plugin_file(file)
    known = list(discover("defense"))
    given = [part for text in names or () for part in o.split_names(text) or ()] + list(o.split_names(defenses) or ())
    chosen = tuple(dict.fromkeys(match_name(name, known) for name in given)) or tuple(known)
    baseline = None if baseline is None else match_name(baseline, chosen)
    if baseline is not None and baseline not in chosen:
        raise unknown_name("baseline", baseline, chosen)

    def print_comparison(records: list[EvaluationRecord], console: Console) -> None:
        from robobench.report import comparison

        comparison.print_comparison(records, console, baseline or (chosen[0] if len(chosen) == 2 else None))
        if baseline is None and len(chosen) > 2:
            console.print(
                f"for paired differences with p-values, add --baseline {chosen[0]} or another defense", markup=False
            )

    return o.execute(o.make_request(flags, defenses=chosen), flags, after=print_comparison)
