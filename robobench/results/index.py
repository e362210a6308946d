"""An index of a large store: the rows of its records, and the state of the files that they were made from.

The records are the truth. The index is an artifact like any other, with digests. Before it is used, the state (inode,
size, times) of every record and timing file is compared, so that a changed, new or removed file is noticed; only the
trainings it belongs to are read again. A damaged index, or one of another VERSION, is not used.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robobench.errors import ArtifactError, StorageError
from robobench.store.artifacts import QUARANTINE_MARKS, Store

if TYPE_CHECKING:
    import pandas as pd

VERSION = 2  # raise it when a column of the rows is added, or gets other values from the same records
MIN_RECORDS = 1000  # fewer are read in less than a second
KIND, NAME = "index", "rows"
OWN_COLUMNS = ("_key", "_training", "_depends_on", "_order", "_group")  # beside those of the rows

State = tuple[int, int, int, int]  # inode, size in bytes, times of the last change of content and of metadata in ns
NO_FILE: State = (0, 0, 0, 0)


@dataclass(frozen=True)
class FileStates:
    """State of every record.json and of every model's timing.json, by name of their folder."""

    records: dict[str, State]
    models: dict[str, State]


@dataclass(frozen=True)
class Index:
    """The index of a store: the state of the files that its rows were made from, and the file of the rows."""

    states: FileStates
    file: Path

    def rows(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Read the rows; default: all columns, with OWN_COLUMNS."""
        import pandas as pd

        rows = pd.read_parquet(self.file, columns=None if columns is None else list(columns))
        for name in (name for name in rows if pd.api.types.is_object_dtype(rows[name])):
            rows[name] = rows[name].where(rows[name].notna(), float("nan"))  # not None, as in a table that was read
        return rows


def scan(root: Path) -> FileStates:
    """Return the state of the files of a store. Nothing is read."""
    return FileStates(
        dict(_states(root / "artifacts" / "evaluations", "record.json")), dict(_states(root, "timing.json"))
    )


def _states(top: Path, file: str) -> Iterator[tuple[str, State]]:
    """Yield (folder, state of its file) of the artifact folders in `top`; see `Store.iter_artifacts`.

    Manifests are left out: a record matched its digest when its row was made, and has not changed since.
    """
    if not top.is_dir():
        return
    with os.scandir(top) as entries:
        for entry in entries:
            name = entry.name
            if "." in name and (name[0] == "." or any(mark in name for mark in QUARANTINE_MARKS)):
                continue
            try:
                s = os.stat(f"{entry.path}/{file}")
                yield name, (s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns)
            except OSError:
                if file == "record.json" and entry.is_dir():  # a model without timing is no training
                    yield name, NO_FILE


def load_index(root: Path) -> Index | None:
    """Return the index of a store; None if there is none, if it is damaged, or if it has another version."""
    import pandas as pd

    folder = Store(root).folder(KIND, NAME)
    try:
        Store.verify(folder)
        if Store.manifest(folder)["recipe"] != {"version": VERSION}:
            return None
        table = pd.read_parquet(folder / "states.parquet")
    except (ArtifactError, OSError, ValueError, KeyError):
        return None
    name, is_record, *state = (table[column].tolist() for column in table)
    states: tuple[dict[str, State], dict[str, State]] = {}, {}
    for folder_name, record, values in zip(name, is_record, zip(*state, strict=True), strict=True):
        states[not record][folder_name] = values
    return Index(FileStates(*states), folder / "rows.parquet")


def save_index(root: Path, rows: pd.DataFrame, states: FileStates) -> None:
    """Store the index of a store with at least MIN_RECORDS records; without permission to write, do nothing."""
    import pandas as pd

    if len(states.records) < MIN_RECORDS:
        return
    lines = [(name, True, *state) for name, state in states.records.items()]
    lines += [(name, False, *state) for name, state in states.models.items()]
    names = ["name", "is_record", "inode", "size", "changed", "metadata_changed"]
    store = Store(root)
    with (
        contextlib.suppress(StorageError),
        store.lock(KIND, NAME),
        store.create(KIND, NAME, {"version": VERSION}) as to,
    ):
        rows.to_parquet(to / "rows.parquet", index=False)
        pd.DataFrame(lines, columns=names).to_parquet(to / "states.parquet", index=False)


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
