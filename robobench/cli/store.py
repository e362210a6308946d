"""`robobench store`: list, verify, prune and merge the artifacts of a store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

HELP = "List, verify, prune or merge the artifacts of a store."
EPILOG = """
Examples:

  robobench store list

  robobench store check --out runs

  robobench store prune --dry-run

  robobench store merge runs other-runs
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


@app.command("prune")
def prune(
    out: Out = Path("runs"),
    intermediate: Annotated[
        bool,
        typer.Option(
            "--intermediate", help="Also stored stages, transfer examples and the index; a run recomputes them."
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be removed; remove nothing.")] = False,
) -> int:
    """Remove quarantined artifacts and what a dead process left. Models, records and unfinished work are kept."""
    from robobench.core.formatting import format_bytes
    from robobench.store.artifacts import Store, wrap_write_errors
    from robobench.store.maintenance import find_leftovers, remove

    any(_folders(out))  # refuses a folder that is no store
    leftovers = find_leftovers(Store(out), intermediate=intermediate)
    total = 0
    for leftover in leftovers:
        size = leftover.size
        total += size
        print(f"{format_bytes(size):>10}  {leftover.folder.relative_to(out)}  ({leftover.why})")
        if not dry_run:
            with wrap_write_errors(leftover.folder):
                remove(leftover)
    what = f"{len(leftovers)} folders, {format_bytes(total)}"
    print(f"would remove {what}; nothing was removed" if dry_run else f"removed {what}")
    return 0


@app.command("merge")
def merge(
    into: Annotated[Path, typer.Argument(help="The store that is added to.")],
    other: Annotated[Path, typer.Argument(help="The store whose artifacts are copied; it is not changed.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be copied; copy nothing.")] = False,
) -> int:
    """Copy from the second store what the first one lacks. Digests are verified, and nothing is replaced."""
    from robobench.errors import RequestError
    from robobench.results.rows import rewrite_rows
    from robobench.store.artifacts import Store
    from robobench.store.maintenance import merge_stores

    if into.resolve() == other.resolve():
        raise RequestError(f"'{into}' and '{other}' are the same store; name two")
    for place in (into, other):
        any(_folders(place))  # refuses a folder that is no store
    store = Store(into, log=lambda line: typer.echo(line, err=True))
    try:
        done = merge_stores(store, Store(other), dry_run=dry_run)
    finally:
        if not dry_run:
            rewrite_rows(store)
    for line in done.left_out:
        print(f"left out: {line}")
    copied = ", ".join(f"{count} {kind}" for kind, count in done.copied.items()) or "nothing"
    print(f"{'would copy' if dry_run else 'copied'} {copied}; {done.present} artifacts were there")
    return 0


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
