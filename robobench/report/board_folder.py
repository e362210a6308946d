"""Snapshots: a store as a small folder to keep beside code, with records, tables, small weights and a list of changes.

`leaderboard`, `report`, `load` and `reproduce` read a snapshot as they read a store.
"""

from __future__ import annotations

import io
import json
import shutil
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from robobench.core.paths import check_writable
from robobench.errors import RequestError
from robobench.planning.repro_command import ReproCommands
from robobench.planning.study_file import study_text
from robobench.report.board_readme import make_readme
from robobench.report.formatting import COMPARABLE_KEYS, add_names, format_percent, iter_groups
from robobench.report.matrix import PROTOCOLS, cost_table, matrix
from robobench.results.records import EvaluationRecord, source_keys
from robobench.results.rows import OPTIONAL_COLUMNS, make_frame, parse_rows, read_records, read_rows
from robobench.store.artifacts import MANIFEST, WEIGHT_FILES, Store, hash_recipe, wrap_write_errors

STUDY = "study.toml"
MAX_WEIGHT_BYTES = 8 * 2**20  # larger weights are left out; `reproduce --retrain` trains them again
MODEL_FILES = ("config.json", "timing.json", "metrics.csv")
CELL_COLUMNS = [
    *("model", "defense", "seed", "selection", "attack", "attack_budget"),
    *("threat_norm", "threat_eps", "protocol", "examples"),
]


def write_snapshot(
    root: Path,
    folder: Path,
    *,
    keep: Callable[[EvaluationRecord], bool] = lambda record: True,
    intro: str = "",
    all_weights: bool = False,
    weights_of: Collection[str] | None = None,
) -> list[str]:
    """Write the snapshot of a store: rows.csv, matrix.csv, README.md, CHANGES.md, study.toml, records, small weights.

    An older snapshot in `folder` is replaced in one step. Text of its README outside the marked tables is kept.

    Args:
        keep: returns whether to include a record.
        intro: Markdown for a new README.
        all_weights: include large weights too, and for models with records also those that were not attacked.
        weights_of: defenses whose weights are included; default: all.

    Returns:
        What was left out, one line each.

    Raises:
        RequestError: there are no records, or the folder is not writable.
        ArtifactError: a record of the store is damaged.
    """
    records = [record for record in read_records(root) if keep(record)]
    if not records:
        raise RequestError(f"'{root}' contains no results; run 'robobench compare' first")
    check_writable(folder)
    store, work = Store(root), folder.with_name(f".{folder.name}.building")
    with wrap_write_errors(folder):
        shutil.rmtree(work, ignore_errors=True)
        left_out = _copy_artifacts(store, records, Store(work), all_weights, weights_of)
        rows = make_frame(read_records(work))
        (work / "rows.csv").write_text(rows.to_csv(index=False))
        (work / "matrix.csv").write_text(matrix_csv(rows))
        old_rows = read_rows(folder) if (folder / "rows.csv").is_file() else None
        (work / "CHANGES.md").write_text(_add_changes(folder, old_rows, rows))
        (work / "README.md").write_text(make_readme(folder, work, intro))
        (work / STUDY).write_text(study_text(ReproCommands(work), folder.name))
        old = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        work.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    return left_out


def stale_tables(place: Path) -> list[str]:
    """Return the tables of a store or snapshot that differ from its records."""
    rows = make_frame(read_records(place))
    older = [rows.drop(columns=OPTIONAL_COLUMNS[n:]) for n in range(len(OPTIONAL_COLUMNS))]
    valid = [_without_types(r.to_csv(index=False)) for r in (rows, *older)]
    file, stale = place / "rows.csv", []
    if file.is_file() and _without_types(file.read_text()) not in valid:
        stale.append(file.name)
    file = place / "matrix.csv"
    if file.is_file() and file.read_text() != matrix_csv(rows):
        stale.append(file.name)
    return stale


def _without_types(text: str) -> str:
    """Return a table of rows as it is written after reading, so that 1 and 1.0 are the same."""
    try:
        return str(parse_rows(io.StringIO(text)).to_csv(index=False))
    except ValueError:  # no table
        return text


def matrix_csv(rows: pd.DataFrame) -> str:
    """Write all matrices as one table, in percent: a row for every model, protocol and number of images."""
    parts = []
    for part in map(add_names, iter_groups(rows, COMPARABLE_KEYS)):
        costs = cost_table(part).drop(columns="clean (%)")
        for protocol in PROTOCOLS:
            if (part["protocol"] == protocol).any():
                table = matrix(part, protocol)
                table.insert(0, "protocol", protocol)
                table.insert(1, "images", part.iloc[0]["examples"])
                parts.append(table.join(costs).reset_index())
    whole = pd.concat(parts, ignore_index=True)
    last = [*costs.columns]
    return whole[[c for c in whole.columns if c not in last] + last].to_csv(index=False)


def _copy_artifacts(
    store: Store,
    records: list[EvaluationRecord],
    target: Store,
    all_weights: bool,
    weights_of: Collection[str] | None,
) -> list[str]:
    """Copy the records, their models, the models these required, and the transfer sources; return what was left out."""
    wanted: dict[str, set[str]] = {}  # folder of a model -> selections attacked
    recipes = {r["key"]: store.manifest(store.folder("evaluations", r["key"]))["recipe"] for r in records}
    configs = {f.name: json.loads((f / "config.json").read_text()) for f in store.iter_artifacts("model")}
    folders = {config["key"]: name for name, config in configs.items()}
    for record in records:
        stored = [s for s, file in WEIGHT_FILES.items() if (store.folder("model", record["training"]) / file).is_file()]
        wanted.setdefault(record["training"], set()).update([record["selection"], *(stored if all_weights else ())])
        for required in record["timing"].get("required", {}):
            wanted.setdefault(required, set())
        for source in folders.keys() & source_keys(recipes[record["key"]]):
            wanted.setdefault(folders[source], set()).add("last")
        _copy_files(store, "evaluations", record["key"], ["record.json"], target)
    left_out = []
    for name, selections in sorted(wanted.items()):
        folder = store.folder("model", name)
        if not folder.is_dir():
            continue
        files = [file for file in MODEL_FILES if (folder / file).is_file()]
        for file in (WEIGHT_FILES[selection] for selection in sorted(selections)):
            if not (folder / file).is_file():
                left_out.append(f"{name}: its weights are not in '{store.root}'")
            elif weights_of is not None and configs[name]["defense"] not in weights_of:
                left_out.append(f"{name}: weights of a defense that was not named")
            elif (folder / file).stat().st_size > MAX_WEIGHT_BYTES and not all_weights:
                left_out.append(f"{name}: weights of {(folder / file).stat().st_size / 2**20:.0f} MiB")
            else:
                files.append(file)
        _copy_files(store, "model", name, files, target)
    return left_out


def _copy_files(store: Store, kind: str, name: str, files: list[str], target: Store) -> None:
    """Copy some files of an artifact, with a manifest of only these; raises ArtifactError if one is damaged."""
    source, folder = store.folder(kind, name), target.folder(kind, name)
    store.verify(source, *files)
    manifest = store.manifest(source)
    manifest["files"] = {file: manifest["files"][file] for file in files}
    folder.mkdir(parents=True)
    for file in files:
        shutil.copyfile(source / file, folder / file)
    (folder / MANIFEST).write_text(json.dumps({**manifest, "digest": hash_recipe(manifest)}, indent=1))


def _add_changes(folder: Path, old: pd.DataFrame | None, new: pd.DataFrame) -> str:
    """Return CHANGES.md with a new section on top: accuracies that moved by 0.05 points, added and removed cells."""
    path = folder / "CHANGES.md"
    before = path.read_text().removeprefix("# Changes\n") if path.is_file() else ""
    if old is None:
        lines = [f"- {len(new)} cells of {new['weights_digest'].nunique()} models: first results."]
    else:
        was, now = ({tuple(map(str, c[:-1])): c[-1] for c in _accuracies(rows)} for rows in (old, new))
        moved = [c for c in now if c in was and f"{was[c]:.3f}" != f"{now[c]:.3f}"]
        lines = [f"- {' '.join(c)}: {format_percent(was[c])} -> {format_percent(now[c])}" for c in moved]
        added, removed = len(now.keys() - was.keys()), len(was.keys() - now.keys())
        lines += [f"- {added} cells added, {removed} removed."] if added or removed else []
    if not lines:
        return path.read_text() if path.is_file() else "# Changes\n"
    return f"# Changes\n\n## {time.strftime('%Y-%m-%d', time.gmtime())}\n\n" + "\n".join(lines) + "\n" + before


def _accuracies(rows: pd.DataFrame) -> Iterable[tuple[Any, ...]]:
    """Iterate over cells: the values of CELL_COLUMNS, then the robust accuracy."""
    columns = [*CELL_COLUMNS, "robust_accuracy"]
    return rows[columns].astype({"robust_accuracy": float}).itertuples(index=False, name=None)
