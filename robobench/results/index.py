"""An index of a large store: the rows of its records, and the state of the files that they were made from.

The records are the truth. The index is an artifact like any other, with digests. Before it is used, the state (inode,
size, times) of every record and timing file is compared, so that a changed, new or removed file is noticed; only the
trainings it belongs to are read again. A damaged index, or one of another version of this package, is not used.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robobench.errors import ArtifactError, StorageError
from robobench.store.artifacts import MANIFEST, QUARANTINE_MARKS, Store

if TYPE_CHECKING:
    import pandas as pd

MIN_RECORDS = 1000  # fewer are read in less than a second
KIND, NAME = "index", "rows"
OWN_COLUMNS = ("_key", "_training", "_depends_on")  # beside those of the rows
TRAINING_FILES, RECORD_FILES = (MANIFEST, "timing.json"), (MANIFEST, "record.json")


@dataclass(frozen=True)
class FileStates:
    """State of every record and of every model's timing, by name of their folder."""

    records: dict[str, str]
    models: dict[str, str]


@dataclass(frozen=True)
class Index:
    """The rows of a store with OWN_COLUMNS, and the state of the files that they were made from."""

    rows: pd.DataFrame
    states: FileStates


def scan(root: Path) -> FileStates:
    """Return the state of the files of a store. Nothing is read."""
    return FileStates(
        dict(_states(root / "artifacts" / "evaluations", RECORD_FILES)), dict(_states(root, TRAINING_FILES))
    )


def _states(top: Path, names: tuple[str, str]) -> Iterator[tuple[str, str]]:
    """Yield (folder, state) of the artifact folders in `top`; see `Store.iter_artifacts`."""
    if not top.is_dir():
        return
    manifest, file = names
    with os.scandir(top) as entries:
        for entry in entries:
            name = entry.name
            if "." in name and (name[0] == "." or any(mark in name for mark in QUARANTINE_MARKS)):
                continue
            if not entry.is_dir():
                continue
            state = _state(f"{entry.path}/{file}")
            if state or file == "record.json":  # a model without timing is no training
                yield name, f"{state} {_state(f'{entry.path}/{manifest}')}"


def _state(path: str) -> str:
    try:
        s = os.stat(path)
    except OSError:
        return ""
    return f"{s.st_ino} {s.st_size} {s.st_mtime_ns} {s.st_ctime_ns}"


@cache
def _version() -> str:
    """Return a digest of the code that makes rows from records."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:16]


def load_index(root: Path) -> Index | None:
    """Return the index of a store; None if there is none, if it is damaged, or if other code made it."""
    import pandas as pd

    folder = Store(root).folder(KIND, NAME)
    try:
        Store.verify(folder)
        if Store.manifest(folder)["recipe"] != {"version": _version()}:
            return None
        rows, states = (pd.read_parquet(folder / f"{name}.parquet") for name in ("rows", "states"))
    except (ArtifactError, OSError, ValueError, KeyError):
        return None
    for name in (name for name in rows if pd.api.types.is_object_dtype(rows[name])):
        rows[name] = rows[name].where(rows[name].notna(), float("nan"))  # not None, as in a table that was read
    records = states["is_record"]
    found = [dict(zip(part["name"], part["state"], strict=True)) for part in (states[records], states[~records])]
    return Index(rows, FileStates(*found))


def save_index(root: Path, index: Index) -> None:
    """Store the index of a store with at least MIN_RECORDS records; without permission to write, do nothing."""
    import pandas as pd

    if len(index.states.records) < MIN_RECORDS:
        return
    lines = [(name, state, True) for name, state in index.states.records.items()]
    lines += [(name, state, False) for name, state in index.states.models.items()]
    store = Store(root)
    with (
        contextlib.suppress(StorageError),
        store.lock(KIND, NAME),
        store.create(KIND, NAME, {"version": _version()}) as to,
    ):
        index.rows.to_parquet(to / "rows.parquet", index=False)
        pd.DataFrame(lines, columns=["name", "state", "is_record"]).to_parquet(to / "states.parquet", index=False)


def join_rows(one: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Put two tables of rows below each other. A column that is empty in one takes the type of the other."""
    import pandas as pd

    parts = [part for part in (one, other) if len(part)] or [one]
    text = {n: part[n].dtype for part in parts for n in part if _is_text(part[n]) and part[n].notna().any()}
    return pd.concat([part.astype({n: t for n, t in text.items() if part[n].isna().all()}) for part in parts])


def _is_text(column: pd.Series[Any]) -> bool:
    """Return whether a column holds text or mixed values: pandas 2 and 3 have different types for it."""
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    return not is_numeric_dtype(column) and not is_bool_dtype(column)


def plain_types(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows with types that do not depend on which rows there are."""
    counts: dict[str, Any] = {name: float for name in ("peak_memory_bytes", "forward_flops") if name in rows}
    empty = {name: float for name in rows.columns if _is_text(rows[name]) and rows[name].isna().all()}
    return rows.astype(counts | empty)
