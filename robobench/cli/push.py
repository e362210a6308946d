"""`robobench push`: put a trained model, a store or a board on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

HELP = """Put a trained model, a store or a board on the Hugging Face Hub.

With records, tables, weights as safetensors, and a model card with figures, intervals, cost and provenance. Commands
read it as hf:OWNER/REPO. Log in first with `hf auth login`.
"""
EPILOG = """
Examples:

  robobench push runs/at-cnn-digits-s0-0123456789 hf:me/at-cnn-digits --license mit

  robobench push leaderboards/mine hf:me/my-board --private

  robobench push runs hf:me/my-runs --dry-run
"""


def main(
    place: Annotated[Path, typer.Argument(help="STORE/NAME of a trained model, a store, or a board.")],
    target: Annotated[str, typer.Argument(help="hf:OWNER/REPO; it is created if there is none.")],
    license_: Annotated[
        str | None, typer.Option("--license", help="License for the card, such as mit or cc-by-4.0; default: none.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Create a private repository.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the card and the files; upload nothing.")] = False,
) -> int:
    """Upload the files in one commit, and print its name."""
    import tempfile

    from robobench.core.formatting import format_bytes
    from robobench.errors import RequestError
    from robobench.report.hub_card import write_repository
    from robobench.store.hub import HubName, upload

    name = HubName.parse(target)
    if name.revision or name.model:
        raise RequestError(f"'{target}': a push goes to the main branch of hf:{name.repo}; leave the rest out")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / name.repo.partition("/")[2]
        for line in write_repository(place, folder, name=name.repo, license_name=license_):
            typer.echo(f"note: left out: {line}", err=True)
        if dry_run:
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            print((folder / "README.md").read_text(), *(file.relative_to(folder) for file in files), sep="\n")
            print(f"{len(files)} files, {format_bytes(sum(file.stat().st_size for file in files))}")
            return 0
        commit = upload(folder, name, private=private)
    print(f"hf:{name.repo}@{commit}")
    return 0
