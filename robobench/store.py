"""The store: a folder of artefacts, each under a key made of everything that determines it.

An artefact is a folder with its files and an `artifact.json` that holds the recipe and every file's SHA-256. It is
written under a temporary name and renamed when it is whole, so a folder under its final name is complete. What
does not match its digests is set aside and built again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from robobench.errors import ArtifactError, RequestError

MANIFEST = "artifact.json"


def canonical(value: Any) -> str:
    """Spell plain values in one way only, for hashing."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)


def key_of(recipe: dict[str, Any]) -> str:
    """Hash a recipe to the 16 hex digits that name its artefact."""
    return hashlib.sha256(canonical(recipe).encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(path: Path, text: str) -> None:
    """Replace a file by its new text in one step: readers see the old or the new one, never half."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def check_writable(root: Path) -> None:
    """Raise RequestError where a store could not be made; creates nothing."""
    existing = root
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise RequestError(f"--out '{root}' cannot be written ('{existing}'); choose another folder")


class Store:
    """Artefacts under one root folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, kind: str, name: str) -> Path:
        """Return where an artefact lives. Trained models stand at the top, the rest under artifacts/."""
        return self.root / name if kind == "model" else self.root / "artifacts" / kind / name

    @contextmanager
    def building(self, kind: str, name: str, recipe: dict[str, Any]) -> Iterator[Path]:
        """Give a temporary folder to fill; on leaving without an error it becomes the artefact."""
        final = self.folder(kind, name)
        final.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{name}."))
        try:
            yield work
            files = {p.name: file_digest(p) for p in sorted(work.iterdir()) if p.is_file()}
            write_atomic(work / MANIFEST, json.dumps({"recipe": recipe, "files": files}, indent=1, default=str))
            work.chmod(0o755)
            old = work.with_name(work.name + ".old")
            if final.exists():  # another process was faster, or a failed cell is being replaced
                os.rename(final, old)
            os.rename(work, final)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def find(self, kind: str, name: str) -> Path | None:
        """Return an artefact's folder if it is there and whole; a damaged one is set aside first."""
        folder = self.folder(kind, name)
        if not folder.is_dir():
            return None
        try:
            self.verify(folder)
        except ArtifactError:
            self._set_aside(folder)
            return None
        return folder

    def digest(self, kind: str, name: str, file: str) -> str:
        """Return the SHA-256 a file of an artefact was stored with."""
        manifest = json.loads((self.folder(kind, name) / MANIFEST).read_text())
        return str(manifest["files"][file])

    def trained(self, defense: str, digest: str | None) -> Path | None:
        """Return the folder of the network of `defense` whose weights file has this SHA-256, if there is one."""
        for folder in self.manifests("model"):
            manifest = json.loads((folder / MANIFEST).read_text())
            if manifest["recipe"].get("defense") == defense and digest in manifest["files"].values():
                return folder
        return None

    @staticmethod
    def verify(folder: Path) -> None:
        """Raise ArtifactError unless every file of an artefact has the digest it was stored with."""
        try:
            files = json.loads((folder / MANIFEST).read_text())["files"]
            for name, digest in files.items():
                if file_digest(folder / name) != digest:
                    raise ArtifactError(f"'{folder / name}' has changed since it was written")
        except (OSError, ValueError, KeyError, TypeError) as err:
            raise ArtifactError(f"'{folder}' is damaged: {err}") from None

    @staticmethod
    def _set_aside(folder: Path) -> None:
        number = 1
        while (aside := folder.with_name(f"{folder.name}.damaged-{number}")).exists():
            number += 1
        os.rename(folder, aside)

    def manifests(self, kind: str) -> Iterator[Path]:
        """Walk the folders of all whole-looking artefacts of a kind."""
        top = self.root if kind == "model" else self.root / "artifacts" / kind
        if top.is_dir():
            for folder in sorted(top.iterdir()):
                damaged = ".damaged-" in folder.name
                if (folder / MANIFEST).is_file() and not folder.name.startswith(".") and not damaged:
                    yield folder
