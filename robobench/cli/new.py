"""`robobench new`: a plug-in package to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

HELP = "Write a plug-in package that works as it stands: a defense or an attack, with its test."
EPILOG = """
Examples:

  robobench new defense my-defense

  robobench new attack my-attack --out plugins/my-attack
"""


def main(
    kind: Annotated[str, typer.Argument(help="defense or attack.")],
    name: Annotated[str, typer.Argument(help="Small letters, digits and dashes.")],
    out: Annotated[Path | None, typer.Option(help="The new folder; default: NAME.")] = None,
) -> int:
    """Write the files and print their names."""
    from robobench.plugins.template import write_template

    for path in write_template(kind, name, out):
        print(path)
    return 0
