"""A board as a folder to keep beside code: a store without what is large, its tables, and what changed.

`leaderboard`, `report`, `load` and `verify` take such a folder as they take a store.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from robobench import results
from robobench.errors import RequestError
from robobench.report.formats import markdown, markdown_escape
from robobench.report.front import front
from robobench.report.matrix import PROTOCOLS, costs, matrix
from robobench.report.text import BOARD, groups, percent, point, with_names
from robobench.store import MANIFEST, WEIGHT_FILES, Store, check_writable, key_of, storing, write_atomic

MOST_BYTES = 8 * 2**20  # of a file of weights; larger ones stay in the store, and `verify --retrain` makes them again
SMALL = ("config.json", "timing.json", "metrics.csv")
BLOCK = re.compile(r"(<!-- (board|details): (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
CELL = [
    *("model", "defense", "seed", "selection", "attack", "budget"),
    *("threat_norm", "threat_eps", "protocol", "examples"),
]
Record = dict[str, Any]


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
    records = [record for record in results.records(root) if keep(record)]
    if not records:
        raise RequestError(f"the rows in '{root}' are none; run 'robobench compare' first")
    check_writable(folder)
    store, work = Store(root), folder.with_name(f".{folder.name}.building")
    with storing(folder):
        shutil.rmtree(work, ignore_errors=True)
        left = _copy(store, records, Store(work))
        rows = results.frame(results.records(work))
        (work / "rows.csv").write_text(rows.to_csv(index=False))
        (work / "matrix.csv").write_text(matrix_csv(rows))
        old = results.read(folder) if (folder / "rows.csv").is_file() else None
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
    folders = {json.loads((f / "config.json").read_text())["key"]: f.name for f in store.manifests("model")}
    for record in records:
        wanted.setdefault(record["training"], set()).add(record["selection"])
        for other in record["timing"].get("required", {}):
            wanted.setdefault(other, set())
        source = recipes[record["key"]]["source"]
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
    (folder / MANIFEST).write_text(json.dumps({**made, "digest": key_of(made)}, indent=1))


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


def fill(text: str, base: Path) -> str:
    """Rewrite what stands between the comments `board: FOLDER` or `details: FOLDER` and `end` in a Markdown text.

    Args:
        base: folder that the FOLDERs are relative to.
    """

    def made(match: re.Match[str]) -> str:
        begin, kind, name, end = match.groups()
        place = base / name
        if not (place / "rows.csv").is_file():
            return f"{begin}\nNo board is in `{name}` yet.\n\n{end}"
        return f"{begin}\n{front(place) if kind == 'board' else details(place)}\n\n{end}"

    return BLOCK.sub(made, text)


def fill_file(file: Path) -> None:
    """Rewrite the tables of a Markdown file.

    Raises:
        RequestError: no such file, or no such comments in it.
    """
    if not file.is_file() or not BLOCK.search(file.read_text()):
        raise RequestError(
            f"'{file}' has no table to fill; it needs a line '<!-- board: FOLDER -->' and below it '<!-- end -->'"
        )
    write_atomic(file, fill(file.read_text(), file.parent))


def _readme(folder: Path, work: Path, intro: str) -> str:
    """Fill the folder's README, or a new one, from the new board."""
    old = folder / "README.md"
    blocks = "\n".join(f"<!-- {kind}: . -->\n<!-- end -->\n" for kind in ("board", "details"))
    text = old.read_text() if old.is_file() else f"# {folder.name}\n\n{intro.strip()}\n\n{blocks}"
    return fill(text.replace("\n\n\n\n", "\n\n"), work)


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


# --- what a reader needs to believe it --------------------------------------------------------------


def details(place: Path) -> str:
    """Write where the figures come from: setting, machine, versions, stages, what is not as published, commands."""
    from robobench.redo import Redo

    redo, records = Redo(place), results.records(place)
    rows = results.frame(records)
    parts = ["## Setting", _setting(rows, records, redo), "## Stages", _stages(records)]
    parts += ["## Values that are not the published ones", _unpublished(redo), "## Commands"]
    commands = [
        redo.command(name, examples=examples)
        for name, examples in sorted({(r["training"], r["examples"]) for r in records})
        if name in redo.configs  # a training that failed left none
    ]
    text = "\n".join(commands)
    parts.append(
        "`robobench verify` attacks a sample of these cells again. Each network from the start (with `--data-dir DIR` "
        "where the files it was measured on are not inside robobench):\n\n"
        f"```\n{text}\n```"
    )
    return "\n\n".join(parts)


def _setting(rows: pd.DataFrame, records: list[Record], redo: Any) -> str:
    def of(name: str) -> str:
        return ", ".join(sorted({str(v) for v in rows[name].dropna()}))

    configs = [c for c in redo.configs.values() if c["train_images"]]
    threats = rows[["train_norm", "train_eps"]].dropna().drop_duplicates().itertuples(index=False, name=None)
    lines = {
        "data": f"{of('dataset')}, test images {of('data_digest')}",
        "network": f"{of('model')}, images of {of('image_size')} px, preset {of('preset')}",
        "training images": ", ".join(sorted({f"{c['train_images']} ({c['held_out']} held out)" for c in configs})),
        "trained against": ", ".join(sorted(point(*threat) for threat in threats)),
        "hardware": of("hardware"),
        "precision, threads a process, compiled": f"{of('precision')}, {of('threads')}, {of('compiled')}",
        "torch": of("torch_version"),
        "robobench commits, training": ", ".join(sorted({str(r["timing"].get("commit")) for r in records})),
        "robobench commits, attacks": of("commit"),
    }
    return "\n".join(f"* {name}: {markdown_escape(value)}" for name, value in lines.items() if value)


def _stages(records: list[Record]) -> str:
    lines = {}
    for record in records:
        for number, stage in enumerate(record["timing"].get("stages", [])):
            lines[record["training"], number] = {
                "network": markdown_escape(f"{record['defense']}, seed {record['seed']}"),
                "stage": stage["name"],
                "epochs": str(stage["epochs"]),
                "s": f"{stage['seconds']:.1f}",
                "CPU s": f"{stage['cpu_seconds']:.1f}",
                "warm-up s": f"{stage['warmup_seconds']:.1f}",
                "images/s": f"{stage['images_per_second']:.0f}",
                "peak GiB": f"{stage['peak_memory_bytes'] / 2**30:.2f}",
            }
    return markdown(pd.DataFrame(lines.values()))


def _unpublished(redo: Any) -> str:
    """List, defense by defense, the config's values that are not its Config's defaults."""
    from dataclasses import asdict

    from robobench import plugins
    from robobench.redo import plain, spelled

    lines = {}
    for config in redo.configs.values():
        try:
            published = plain(asdict(plugins.load_defense(config["defense"]).Config()))
        except (RequestError, TypeError, ValueError):
            continue  # from elsewhere, or a plug-in that is not here
        ours = [k for k, v in config["config"].items() if published[k] != v]
        values = ", ".join(f"{k}={spelled(config['config'][k])} ({spelled(published[k])})" for k in ours)
        lines[config["defense"]] = f"* {config['defense']}: {markdown_escape(values) or 'none'}"
    return "\n".join(["In brackets what the papers or their code have.", "", *(lines[name] for name in sorted(lines))])
