"""`robobench leaderboard`: what a store or a published folder holds, ranked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

HELP = "Rank trained networks by their white-box worst case; boards of different settings stand apart."
EPILOG = """
Examples:

  robobench leaderboard

  robobench leaderboard --format md > results.md

  robobench leaderboard leaderboards/cifar10-jpeg-resnet20
"""


def main(
    place: Annotated[Path | None, typer.Argument(help="A store or a folder of leaderboards/; default: --out.")] = None,
    out: Annotated[Path, typer.Option(help="The store.")] = Path("runs"),
    form: Annotated[str, typer.Option("--format", help="table, md, csv, latex, json or html.")] = "table",
) -> int:
    """Print the leaderboard to stdout."""
    from robobench import report, results

    print(report.leaderboard(results.read(place or out), form), end="")
    return 0
