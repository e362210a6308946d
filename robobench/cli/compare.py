"""`robobench compare`: several defenses side by side. Only what the store lacks is run."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from robobench.cli import options as o
from robobench.errors import RequestError

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

  robobench compare study.toml --dry-run

  robobench compare study.toml --seeds 0 --set trades.beta=6
"""


@o.with_flags(o.RunFlags)
def main(
    flags: o.RunFlags,
    context: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Names of `list defenses`, default: all; or an experiment file FILE.toml.", metavar="[DEFENSE|FILE]..."
        ),
    ] = None,
    defenses: Annotated[str | None, typer.Option(help="The same as a flag, comma-separated.")] = None,
    baseline: Annotated[
        str | None, typer.Option(help="Print paired differences to this defense; default: the first of two.")
    ] = None,
) -> int:
    """Run several defenses."""
    from robobench.core.registry import match_name, unknown_name
    from robobench.plugins.discovery import add_plugin_file, discover

    given = [part for text in names or () for part in o.split_names(text) or ()] + list(o.split_names(defenses) or ())
    files = [name for name in given if name.endswith(".toml")]
    if files:
        return run_study(files, tuple(name for name in given if name not in files), flags, context, baseline)
    for file in flags.plugin or ():
        add_plugin_file(file)
    known = list(discover("defense"))
    chosen = tuple(dict.fromkeys(match_name(name, known) for name in given)) or tuple(known)
    baseline = None if baseline is None else match_name(baseline, chosen)
    if baseline is not None and baseline not in chosen:
        raise unknown_name("baseline", baseline, chosen)

    def print_comparison(records: list[EvaluationRecord], console: Console) -> None:
        from robobench.report import comparison

        comparison.print_comparison(records, console, baseline or (chosen[0] if len(chosen) == 2 else None))
        _hint_at_baseline(chosen, baseline, console)

    return o.execute(o.make_request(flags, defenses=chosen), flags, after=print_comparison)


def run_study(
    files: list[str], defenses: tuple[str, ...], flags: o.RunFlags, context: typer.Context, baseline: str | None
) -> int:
    """Run the grid of an experiment file."""
    from robobench.core.registry import match_name, unknown_name
    from robobench.plugins.discovery import discover

    if len(files) > 1:
        raise RequestError(
            f"give one experiment file, got {', '.join(files)}; one file may hold several [[run]] tables"
        )
    study = o.read_study_file(files[0], flags, context, defenses)
    known = list(discover("defense"))
    points = [replace(p, request=replace(p.request, defenses=p.request.defenses or tuple(known))) for p in study.points]
    chosen = tuple(dict.fromkeys(match_name(name, known) for p in points for name in p.request.defenses))
    baseline = baseline or study.baseline
    baseline = None if baseline is None else match_name(baseline, chosen)
    if baseline is not None and baseline not in chosen:
        raise unknown_name("baseline", baseline, chosen)

    def print_tables(results: list[list[EvaluationRecord]], console: Console) -> None:
        from robobench.report.study import print_study

        print_study(points, results, console, baseline or (chosen[0] if len(chosen) == 2 else None))
        _hint_at_baseline(chosen, baseline, console)

    return o.execute_points(points, flags, after=print_tables)


def _hint_at_baseline(chosen: tuple[str, ...], baseline: str | None, console: Console) -> None:
    if baseline is None and len(chosen) > 2:
        console.print(
            f"for paired differences with p-values, add --baseline {chosen[0]} or another defense", markup=False
        )
