"""`robobench new`: write a plug-in package to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

HELP = "Write a working plug-in package. It has a defense or an attack, its entry point and a test."
EPILOG = """
Examples:

  robobench new defense my-defense

  robobench new attack my-attack --out plugins/my-attack
"""


def main(
    kind: Annotated[str, typer.Argument(help="defense or attack.")],
    name: Annotated[str, typer.Argument(help="Lower-case letters, digits and dashes.")],
    out: Annotated[Path | None, typer.Option(help="The new folder; default: NAME.")] = None,
) -> int:
    """Write the files and print their paths."""
    from robobench.plugins.template import write_template

    for path in write_template(kind, name, out):
        print(path)
    return 0
