"""`robobench check`: test a plug-in against the contract."""

from __future__ import annotations

from typing import Annotated

import typer

HELP = "Test a plug-in against its contract. Runs every check that built-in defenses and attacks pass."
EPILOG = """
Examples:

  robobench check my_package.my_defense

  robobench check my_attack.py

  robobench check trades
"""


def main(
    what: Annotated[str, typer.Argument(help="A registered name, a dotted module or a .py file.")],
) -> int:
    """Print one line per check; the exit status is 1 if one fails."""
    import torch

    from robobench.testing import check_plugin

    torch.set_num_threads(1)  # more threads are slower with models this small
    failed = False
    for kind, name, check, problem in check_plugin(what):
        failed |= problem is not None
        print(f"{'FAIL' if problem else 'ok':<5}{kind} {name}: {check}" + (f": {problem}" if problem else ""))
    return int(failed)
