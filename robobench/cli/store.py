"""`robobench store`: list the artifacts of a store, and verify their digests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

HELP = "List or verify the artifacts of a store. With their sizes and digests."
EPILOG = """
Examples:

  robobench store list

  robobench store check --out runs
"""

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
Out = Annotated[Path, typer.Option(help="The store.")]


@app.command("list")
def listing(out: Out = Path("runs")) -> int:
    """Print one line per trained model, and one per other kind of artifact: number and size."""
    from robobench.core.formatting import format_bytes

    lines: dict[str, list[int]] = {}
    for kind, folder, note in _folders(out):
        label = note or (folder.name if kind == "model" else kind)
        count = lines.setdefault(label, [0, 0])
        count[0] += 1
        count[1] += sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    width = max(map(len, lines), default=0)
    for label, (folders, used) in lines.items():
        print(f"{label:<{width}}  {folders:>6}  {format_bytes(used):>10}")
    return 0


@app.command("check")
def check(out: Out = Path("runs")) -> int:
    """Verify every digest; the exit status is 1 if an artifact is damaged. Changes nothing."""
    from robobench.errors import ArtifactError
    from robobench.store.artifacts import Store

    intact = damaged = 0
    for _, folder, note in _folders(out):
        if note:
            continue
        try:
            Store.verify(folder)
            intact += 1
        except ArtifactError as err:
            damaged += 1
            print(f"damaged: {err}")
    print(f"{intact} artifacts intact, {damaged} damaged" + ("; rerun their commands" if damaged else ""))
    return int(damaged > 0)


def _folders(out: Path) -> Iterator[tuple[str, Path, str]]:
    """Yield (kind, folder, note) of every artifact folder; the note is "" if it is in use. Raises RequestError."""
    from robobench.errors import RequestError
    from robobench.store.artifacts import QUARANTINE_MARKS, Store

    found = list(Store(out).iter_folders())
    if not found:
        raise RequestError(f"no store in '{out}'; run 'robobench run' first, or name another store with --out")
    for kind, folder in found:
        inside = folder.relative_to(out)
        note = "unfinished" if inside.name.startswith(".") else ""
        yield kind, folder, "quarantined" if any(mark in str(inside) for mark in QUARANTINE_MARKS) else note
