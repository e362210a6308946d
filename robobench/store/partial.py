"""Saves of unfinished work, from which an interrupted run resumes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from robobench.store.artifacts import Store


class PartialResults:
    """Numbered saves of an unfinished stage or evaluation. Each save is an artifact of the store.

    Args:
        kind: folder below artifacts/ that holds the saves.
    """

    def __init__(self, store: Store, kind: str) -> None:
        self.store, self.kind = store, kind
        store.open_partial(kind)

    def find(self, number: int) -> Path | None:
        """Return the folder of a save if it exists and is undamaged."""
        return self.store.find(self.kind, f"{number:08d}")

    def newest(self) -> Path | None:
        """Return the folder of the newest undamaged save."""
        found = (self.find(number) for number in sorted(self._numbers(), reverse=True))
        return next((folder for folder in found if folder is not None), None)

    @property
    def last(self) -> int:
        """The highest number of a save, -1 if there is none."""
        return max(self._numbers(), default=-1)

    def _numbers(self) -> list[int]:
        folder = self.store.root / "artifacts" / self.kind
        return [int(path.name) for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []

    def quarantine(self, folder: Path) -> None:
        """Rename an undamaged save that does not fit this run."""
        moved = self.store.quarantine(folder, ".damaged-")
        self.store.log(f"'{folder}' does not fit this run; moved to '{moved.name}'")

    @contextmanager
    def saving(self, number: int, *, keep: bool = False) -> Iterator[Path]:
        """Yield a folder to fill. Once it is stored, earlier saves are removed unless `keep`."""
        with self.store.create(self.kind, f"{number:08d}", {}) as work:
            yield work
        for other in () if keep else self._numbers():
            if other != number:
                shutil.rmtree(self.store.folder(self.kind, f"{other:08d}"), ignore_errors=True)

    def side_folder(self, name: str) -> Path:
        """Return a folder beside the saves, for files that they need; `clear` removes it."""
        return self.store.root / "artifacts" / self.kind / name

    def clear(self) -> None:
        """Remove every save, once the work is finished."""
        self.store.discard(self.kind)
