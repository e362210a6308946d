"""Attacks stored networks again and compares what is found with what was recorded.

A figure holds if the accuracy found now lies in the 95 % interval of the recorded one, on the same images. On the CPU
it was measured on it is the same image by image, unless the search ran compiled, which rounds differently.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from robobench.core.paths import check_writable
from robobench.errors import RequestError
from robobench.report.board_readme import _readme
from robobench.report.formatting import BOARD, groups, percent, with_names
from robobench.report.matrix import PROTOCOLS, costs, matrix
from robobench.results.records import EvaluationRecord
from robobench.results.rows import OPTIONAL_COLUMNS, make_frame, read_records, read_rows
from robobench.store.artifacts import MANIFEST, WEIGHT_FILES, Store, hash_recipe, wrap_write_errors


def stale_tables(place: Path) -> list[str]:
    """Return the tables in a folder that are not what its records give."""
    rows = make_frame(read_records(place))
    older = rows.drop(columns=OPTIONAL_COLUMNS)
    made = {"rows.csv": [r.to_csv(index=False) for r in (rows, older)], "matrix.csv": [matrix_csv(rows)]}
    return [file for file, able in made.items() if (place / file).is_file() and (place / file).read_text() not in able]


MOST_BYTES = 8 * 2**20  # of a file of weights; larger ones stay in the store, and `verify --retrain` makes them again

SMALL = ("config.json", "timing.json", "metrics.csv")

CELL = [
    *("model", "defense", "seed", "selection", "attack", "attack_budget"),
    *("threat_norm", "threat_eps", "protocol", "examples"),
]

Record = EvaluationRecord


def publish(
    root: Path, folder: Path, *, keep: Callable[[Record], bool] = lambda record: True, intro: str = ""
) -> list[str]:
    """Write the board of a store: rows.csv, matrix.csv, README.md, CHANGES.md, the records, and weights that are small.

    An older board in the folder gives way in one step; of its README what stands outside the comments stays, and
    what moved is written into CHANGES.md.

    Args:
        keep: says of a record (a cell) whether it is shown.
        intro: Markdown for a README that is not there yet.

    Returns:
        What was left out, a line each.

    Raises:
        RequestError: nothing to show, or the folder cannot be written.
        ArtifactError: a record of the store is damaged.
    """
    records = [record for record in read_records(root) if keep(record)]
    if not records:
        raise RequestError(f"the rows in '{root}' are none; run 'robobench compare' first")
    check_writable(folder)
    store, work = Store(root), folder.with_name(f".{folder.name}.building")
    with wrap_write_errors(folder):
        shutil.rmtree(work, ignore_errors=True)
        left = _copy(store, records, Store(work))
        rows = make_frame(read_records(work))
        (work / "rows.csv").write_text(rows.to_csv(index=False))
        (work / "matrix.csv").write_text(matrix_csv(rows))
        old = read_rows(folder) if (folder / "rows.csv").is_file() else None
        (work / "CHANGES.md").write_text(_changes(folder, old, rows))
        (work / "README.md").write_text(_readme(folder, work, intro))
        aside = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(aside, ignore_errors=True)
        if folder.exists():
            folder.rename(aside)
        work.rename(folder)
        shutil.rmtree(aside, ignore_errors=True)
    return left


def _copy(store: Store, records: list[Record], target: Store) -> list[str]:
    """Copy what the records need: themselves, their networks, those these required, and the transfer sources."""
    wanted: dict[str, set[str]] = {}  # folder of a network -> selections attacked
    recipes = {r["key"]: store.manifest(store.folder("evaluations", r["key"]))["recipe"] for r in records}
    folders = {json.loads((f / "config.json").read_text())["key"]: f.name for f in store.iter_artifacts("model")}
    for record in records:
        wanted.setdefault(record["training"], set()).add(record["selection"])
        for other in record["timing"].get("required", {}):
            wanted.setdefault(other, set())
        source = recipes[record["key"]]["transfer_source"]
        if source in folders:
            wanted.setdefault(folders[source], set()).add("last")
        _slim(store, "evaluations", record["key"], ["record.json"], target)
    left = []
    for name, selections in sorted(wanted.items()):
        folder = store.folder("model", name)
        if not folder.is_dir():
            continue
        files = [file for file in SMALL if (folder / file).is_file()]
        for file in (WEIGHT_FILES[selection] for selection in sorted(selections)):
            if not (folder / file).is_file():
                left.append(f"{name}: its weights are not in '{store.root}'")
            elif (folder / file).stat().st_size > MOST_BYTES:
                left.append(f"{name}: weights of {(folder / file).stat().st_size / 2**20:.0f} MiB")
            else:
                files.append(file)
        _slim(store, "model", name, files, target)
    return left


def _slim(store: Store, kind: str, name: str, files: list[str], target: Store) -> None:
    """Copy some files of an artefact, with a manifest of these alone; raises ArtifactError where one is damaged."""
    source, folder = store.folder(kind, name), target.folder(kind, name)
    store.verify(source, *files)
    made = store.manifest(source)
    made["files"] = {file: made["files"][file] for file in files}
    folder.mkdir(parents=True)
    for file in files:
        shutil.copyfile(source / file, folder / file)
    (folder / MANIFEST).write_text(json.dumps({**made, "digest": hash_recipe(made)}, indent=1))


def matrix_csv(rows: pd.DataFrame) -> str:
    """Write the matrices of all boards as one table: a network, protocol and number of images a line, in percent."""
    parts = []
    for board in map(with_names, groups(rows, BOARD)):
        cost = costs(board).drop(columns="clean %")
        for protocol in PROTOCOLS:
            if (board["protocol"] == protocol).any():
                table = matrix(board, protocol)
                table.insert(0, "protocol", protocol)
                table.insert(1, "images", board.iloc[0]["examples"])
                parts.append(table.join(cost).reset_index())
    whole = pd.concat(parts, ignore_index=True)
    last = [*cost.columns]
    return whole[[c for c in whole.columns if c not in last] + last].to_csv(index=False)


def _changes(folder: Path, old: pd.DataFrame | None, new: pd.DataFrame) -> str:
    """Put what moved on top of the folder's CHANGES.md: figures by 0.05 points or more, cells that came or went."""
    path = folder / "CHANGES.md"
    before = path.read_text().removeprefix("# Changes\n") if path.is_file() else ""
    if old is None:
        lines = [f"- {len(new)} cells of {new['weights_digest'].nunique()} networks: the first figures."]
    else:
        was, now = ({tuple(map(str, c[:-1])): c[-1] for c in _figures(rows)} for rows in (old, new))
        moved = [c for c in now if c in was and f"{was[c]:.3f}" != f"{now[c]:.3f}"]
        lines = [f"- {' '.join(c)}: {percent(was[c])} -> {percent(now[c])}" for c in moved]
        added, gone = len(now.keys() - was.keys()), len(was.keys() - now.keys())
        lines += [f"- {added} cells came, {gone} went."] if added or gone else []
    if not lines:
        return path.read_text() if path.is_file() else "# Changes\n"
    return f"# Changes\n\n## {time.strftime('%Y-%m-%d', time.gmtime())}\n\n" + "\n".join(lines) + "\n" + before


def _figures(rows: pd.DataFrame) -> Iterable[tuple[Any, ...]]:
    return rows[[*CELL, "robust_accuracy"]].astype({"robust_accuracy": float}).itertuples(index=False, name=None)
