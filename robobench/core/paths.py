"""Folders of data sets and caches, and a check that a folder can be written."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from robobench.errors import RequestError


def expand_user(value: Any) -> Any:
    """Replace ~/ by the home folder in a text or path, also after : and =, as in npz:~/mine.npz; else return `value`.

    A shell does so only at the beginning of a word.
    """
    if isinstance(value, Path):
        return value.expanduser()
    return re.sub(r"(^|[:=])~(?=/|$)", rf"\1{Path.home()}", value) if isinstance(value, str) else value


def cache_root() -> Path:
    """Return robobench's folder in the user cache of the platform."""
    from platformdirs import user_cache_path

    return user_cache_path("robobench", appauthor=False)


def data_root(data_dir: Path | str | None = None) -> Path:
    """Return the folder of data sets: `data_dir`, else $ROBOBENCH_DATA, else one in the user cache.

    Raises:
        RequestError: `data_dir` is not a folder.
    """
    if data_dir is not None:
        if not Path(data_dir).is_dir():
            raise RequestError(
                f"--data-dir '{data_dir}' is not a folder; create it, or name the folder that holds the data"
            )
        return Path(data_dir)
    if os.environ.get("ROBOBENCH_DATA"):
        return Path(os.environ["ROBOBENCH_DATA"]).expanduser()
    return cache_root() / "data"


def check_writable(root: Path, flag: str = "--out") -> None:
    """Raise RequestError unless a folder exists and can be written, or can be created. Creates nothing."""
    existing = root
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise RequestError(f"{flag} '{root}' cannot be written ('{existing}'); choose another folder")
