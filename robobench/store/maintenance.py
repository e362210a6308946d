"""Remove from a store what nothing needs, and merge two stores."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from robobench.store.artifacts import MANIFEST, QUARANTINE_MARKS, WEIGHT_FILES, Store

MERGED_KINDS = ("model", "stages", "transfer", "evaluations")  # models first: records belong to them
INTERMEDIATE_KINDS = ("stages", "transfer", "index")  # computed again if a run needs them


@dataclass(frozen=True)
class Leftover:
    """A folder that can be removed."""

    folder: Path
    why: str

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())


def find_leftovers(store: Store, *, intermediate: bool = False) -> list[Leftover]:
    """Return what can be removed: quarantined artifacts, and what a process that died left behind.

    Unfinished trainings and evaluations are kept, since a run resumes from them, and so is what a process uses now.

    Args:
        intermediate: also stored stages, transfer examples and the index.
    """
    out = []
    for kind, folder in store.iter_folders():
        inside = folder.relative_to(store.root).parts
        if any(mark in part for part in inside for mark in QUARANTINE_MARKS):
            top = next(n for n, part in enumerate(inside) if any(mark in part for mark in QUARANTINE_MARKS))
            out.append(Leftover(store.root.joinpath(*inside[: top + 1]), "quarantined"))
        elif folder.name.startswith(".") and len(inside) in (1, 3):  # not of a save below a kind, which has no lock
            name = folder.name.removeprefix(".").rpartition(".")[0]
            if not _in_use(store, kind, name):
                out.append(Leftover(folder, "left by a process that died"))
        elif intermediate and kind in INTERMEDIATE_KINDS and not _in_use(store, kind, folder.name):
            out.append(Leftover(folder, "computed again when needed"))
    return list({leftover.folder: leftover for leftover in out}.values())


def _in_use(store: Store, kind: str, name: str) -> bool:
    """Return whether a process holds the lock of an artifact."""
    file = store.root / "artifacts" / "locks" / f"{kind}-{name}.lock"
    if not file.exists():
        return False
    try:
        with FileLock(file, timeout=0):
            return False
    except Timeout:
        return True


def remove(leftover: Leftover) -> None:
    """Remove a folder. Its name changes first, so that a reader never sees half of it."""
    hidden = leftover.folder.with_name(f".{leftover.folder.name.lstrip('.')}.old")
    if hidden != leftover.folder:
        shutil.rmtree(hidden, ignore_errors=True)
        leftover.folder.rename(hidden)
    shutil.rmtree(hidden)


@dataclass
class Merge:
    """What a merge copies, and what it leaves out."""

    copied: dict[str, int] = field(default_factory=dict)  # kind -> artifacts
    present: int = 0  # artifacts that both stores have
    left_out: list[str] = field(default_factory=list)  # with the reason


def merge_stores(into: Store, other: Store, *, dry_run: bool = False) -> Merge:
    """Copy the artifacts that `into` lacks from another store. Nothing in `into` is replaced by other content.

    A model that both stores trained to different weights stays as it is in `into`; records of the other weights are
    left out.

    Raises:
        ArtifactError: an artifact to copy is damaged.
        StorageError: `into` cannot be written. What was copied is kept, and the same merge continues.
    """
    done, other_weights = Merge(), set[str]()
    for kind, folder, manifest in _artifacts(other):
        name, sources = folder.name, dict.fromkeys(manifest["files"], folder)
        if kind == "evaluations":
            other.verify(folder)
        if kind == "evaluations" and _training(folder) in other_weights:
            done.left_out.append(f"{kind} {name}: it belongs to other weights of '{_training(folder)}'")
            continue
        mine = _manifest(into, kind, name)
        if mine is not None:
            common = mine["files"].keys() & manifest["files"].keys()
            differ = sorted(file for file in common if mine["files"][file] != manifest["files"][file])
            if kind == "model" and set(differ) & set(WEIGHT_FILES.values()):
                other_weights.add(name)
                done.left_out.append(f"{kind} {name}: '{into.root}' has other weights")
                continue
            if differ and kind != "model":  # two evaluations of a cell: their seconds differ
                done.left_out.append(f"{kind} {name}: '{into.root}' has another result")
                continue
            if sources.keys() <= mine["files"].keys():
                done.present += 1
                continue
            sources |= dict.fromkeys(mine["files"], into.folder(kind, name))  # other selections of the same training
        other.verify(folder)
        done.copied[kind] = done.copied.get(kind, 0) + 1
        if not dry_run:
            with into.lock(kind, name), into.create(kind, name, manifest["recipe"]) as work:
                for file, source in sources.items():
                    shutil.copyfile(source / file, work / file)
    return done


def _artifacts(store: Store) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    for kind in MERGED_KINDS:
        for folder in store.iter_artifacts(kind):
            yield kind, folder, store.manifest(folder)


def _manifest(store: Store, kind: str, name: str) -> dict[str, Any] | None:
    folder = store.folder(kind, name)
    return store.manifest(folder) if (folder / MANIFEST).is_file() else None


def _training(record: Path) -> str:
    """Return the folder of the model that a record belongs to."""
    return str(json.loads((record / "record.json").read_text())["training"])
