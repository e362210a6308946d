"""The store: a folder of artifacts. The key of an artifact is a hash of everything that determines it.

An artifact is a folder with its files and an `artifact.json` that holds the recipe and the SHA-256 of every file. It is
written under a temporary name and renamed when it is complete. An artifact that does not match its digests is renamed
("quarantined") and computed again. The process that builds an artifact holds its lock; the operating system releases
the locks of a dead process.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from robobench.errors import ArtifactError, StorageError

MANIFEST = "artifact.json"
WEIGHT_FILES = {  # of a trained model, by selection: of the last or the best epoch, live or averaged weights
    "last": "model.safetensors",
    "best": "best.safetensors",
    "average": "average.safetensors",
    "best-average": "best-average.safetensors",
}
QUARANTINE_MARKS = (".damaged-", ".replaced-")  # in the names of quarantined folders, which are never read


def canonical_json(value: Any) -> str:
    """Return plain values as canonical JSON, for hashing."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)


def hash_recipe(recipe: dict[str, Any]) -> str:
    """Hash a recipe to the 16 hexadecimal digits that name its artifact."""
    return hashlib.sha256(canonical_json(recipe).encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file. It is cached until the file changes."""
    state = path.stat()
    return _digest(path, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


@lru_cache(maxsize=4096)
def _digest(path: Path, *state: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(path: Path, text: str) -> None:
    """Replace a file's text atomically: a reader sees the old text or the new text.

    Raises:
        StorageError: the file cannot be written; the old one is unchanged.
    """
    with wrap_write_errors(path):
        _write_atomic(path, text)


def _write_atomic(path: Path, text: str) -> None:
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


@contextmanager
def wrap_write_errors(path: Path) -> Iterator[None]:
    """Turn an OSError or SafetensorError of writing into a StorageError."""
    try:
        yield
    except (OSError, SafetensorError) as err:
        why = getattr(err, "strerror", None) or str(err).split("(os error")[0].removeprefix("Error while serializing: ")
        raise StorageError(
            f"cannot write '{path}' ({why.strip()}); fix this and rerun the same command to resume"
        ) from err


def fsync_file(path: Path) -> None:
    """Flush a file to disk, so that a later rename never exposes an incomplete file."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Store:
    """Artifacts under one root folder.

    Args:
        overwrite: quarantine artifacts of earlier runs instead of reusing them.
        log: called with a message for each damaged artifact and for each wait.
    """

    def __init__(self, root: Path, *, overwrite: bool = False, log: Callable[[str], None] = lambda line: None) -> None:
        self.root, self.overwrite, self.log = root, overwrite, log
        self._created: set[Path] = set()  # by this object, so not overwritten

    def folder(self, kind: str, name: str) -> Path:
        """Return an artifact's folder: trained models at the top level, everything else below artifacts/."""
        return self.root / name if kind == "model" else self.root / "artifacts" / kind / name

    def _lock(self, kind: str, name: str) -> Path:
        return self.root / "artifacts" / "locks" / f"{kind}-{name}.lock"

    def is_locked(self, kind: str, name: str) -> bool:
        """Return whether a process builds an artifact, or was killed while it did. For progress display only."""
        return self._lock(kind, name).with_suffix(".owner").exists()

    @contextmanager
    def lock(self, kind: str, name: str) -> Iterator[None]:
        """Hold the lock of an artifact. If another process holds it, log its owner and wait."""
        path = self._lock(kind, name)
        owner = path.with_suffix(".owner")
        with wrap_write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                with contextlib.suppress(OSError):
                    self.log(f"waiting for lock on {kind} '{name}' (held by {owner.read_text()})")
                lock.acquire()
        try:
            with contextlib.suppress(OSError):  # only for the message above
                owner.write_text(f"process {os.getpid()} on host {socket.gethostname()}")
            yield
        finally:
            with contextlib.suppress(OSError):
                owner.unlink()
            lock.release()

    @contextmanager
    def create(self, kind: str, name: str, recipe: dict[str, Any]) -> Iterator[Path]:
        """Yield a temporary folder to fill. If the block ends without error, it becomes the artifact.

        The caller holds the artifact's lock, so leftover files belong to a dead process.

        Raises:
            StorageError: the artifact cannot be written; an older one is unchanged.
        """
        final = self.folder(kind, name)
        work, old = (final.with_name(f".{final.name}.{end}") for end in ("building", "old"))
        try:
            with wrap_write_errors(final):
                for leftover in (work, old):
                    shutil.rmtree(leftover, ignore_errors=True)
                work.mkdir(parents=True)
                yield work
                files = {p.name: file_digest(p) for p in sorted(work.iterdir()) if p.is_file()}
                manifest = json.loads(canonical_json({"name": name, "recipe": recipe, "files": files}))
                (work / MANIFEST).write_text(json.dumps({**manifest, "digest": hash_recipe(manifest)}, indent=1))
                for path in work.iterdir():
                    fsync_file(path)
                if final.exists():  # the record of a failed cell
                    os.rename(final, old)
                os.rename(work, final)
                self._created.add(final)
                shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def find(self, kind: str, name: str, *files: str) -> Path | None:
        """Return an artifact's folder if it exists and is undamaged; a damaged one is quarantined.

        Args:
            files: names of the files to verify; default: all.
        """
        folder = self.folder(kind, name)
        if not folder.is_dir():
            return None
        if self.overwrite and folder not in self._created:
            self.quarantine(folder, ".replaced-")
            return None
        try:
            self.verify(folder, *files)
        except ArtifactError as err:
            moved = self.quarantine(folder, ".damaged-")
            self.log(f"{err}; moved to '{moved.name}', will be recomputed")
            return None
        return folder

    def open_partial(self, kind: str) -> None:
        """Begin or resume unfinished work. With `overwrite`, work of an earlier run is quarantined first."""
        folder = self.root / "artifacts" / kind
        if self.overwrite and folder not in self._created and folder.is_dir():
            self.quarantine(folder, ".replaced-")
        self._created.add(folder)

    def discard(self, kind: str) -> None:
        """Remove unfinished work that is no longer needed."""
        shutil.rmtree(self.root / "artifacts" / kind, ignore_errors=True)

    def digest(self, kind: str, name: str, file: str) -> str:
        """Return the stored SHA-256 of an artifact's file; raises ArtifactError."""
        return str(self.manifest(self.folder(kind, name))["files"][file])

    def find_trained(self, defense: str, digest: str | None) -> Path | None:
        """Return the folder of the model of `defense` with a weights file of this SHA-256, or None."""
        for folder in self.iter_artifacts("model"):
            manifest = self.manifest(folder)
            if manifest["recipe"].get("defense") == defense and digest in manifest["files"].values():
                return folder
        return None

    def find_stage(self, training: dict[str, Any], name: str) -> Path | None:
        """Return the folder of a stage's result in the training of this recipe, or None.

        Trainings that differ only in values that do not affect the stage share its result.
        """
        for folder in self.iter_artifacts("stages"):
            recipe = self.manifest(folder)["recipe"]
            config = {field: training["config"].get(field) for field in recipe["training"].get("config", {})}
            if recipe["stage"] == name and canonical_json(recipe["training"]) == canonical_json(
                {**training, "config": config}
            ):
                return folder
        return None

    @staticmethod
    def manifest(folder: Path) -> dict[str, Any]:
        """Read an artifact's manifest; raises ArtifactError if it was changed or damaged."""
        try:
            manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
            if manifest.pop("digest") != hash_recipe(manifest):
                raise ArtifactError(f"checksum mismatch in '{folder / MANIFEST}'")
            if manifest["name"] != folder.name:
                raise ArtifactError(f"'{folder}' was stored as '{manifest['name']}'")
            if not isinstance(manifest["files"], dict):
                raise TypeError("files")
            return manifest
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
            raise ArtifactError(f"'{folder}' is damaged ({_reason(err)})") from None

    @classmethod
    def verify(cls, folder: Path, *files: str) -> None:
        """Raise ArtifactError unless all files of an artifact (or the named ones) match their stored digests."""
        digests = cls.manifest(folder)["files"]
        try:
            for name in files or digests:
                if file_digest(folder / name) != digests[name]:
                    raise ArtifactError(f"checksum mismatch in '{folder / name}'")
        except (OSError, KeyError, TypeError, ValueError) as err:
            raise ArtifactError(f"'{folder}' is damaged ({_reason(err)})") from None

    @staticmethod
    def quarantine(folder: Path, mark: str) -> Path:
        """Rename an artifact so that it is kept but never read again; return the new path."""
        number = 1
        while (moved := folder.with_name(f"{folder.name}{mark}{number}")).exists():
            number += 1
        with wrap_write_errors(folder), contextlib.suppress(FileNotFoundError):  # another process has renamed it
            os.rename(folder, moved)
        return moved

    def iter_artifacts(self, kind: str) -> Iterator[Path]:
        """Iterate over the artifact folders of a kind, without quarantined and unfinished ones."""
        top = self.root if kind == "model" else self.root / "artifacts" / kind
        if top.is_dir():
            for folder in sorted(top.iterdir()):
                skip = folder.name.startswith(".") or any(mark in folder.name for mark in QUARANTINE_MARKS)
                if not skip and folder.is_dir() and (kind != "model" or (folder / MANIFEST).is_file()):
                    yield folder

    def iter_folders(self) -> Iterator[tuple[str, Path]]:
        """Iterate over (kind, folder) of all artifact folders, also damaged, quarantined and unfinished ones."""
        model_files = {MANIFEST, "model.safetensors", "config.json", "timing.json"}
        for place, _, files in sorted(os.walk(self.root)):
            folder = Path(place)
            parts = folder.relative_to(self.root).parts
            if len(parts) == 1 and model_files & set(files):
                yield "model", folder
            elif len(parts) > 2 and parts[0] == "artifacts" and files:
                yield parts[1], folder


def _reason(err: Exception) -> str:
    """Return in a few words what is wrong with an artifact."""
    if isinstance(err, OSError):
        return f"{Path(err.filename or '').name}: {err.strerror}"
    return f"{MANIFEST} is invalid"
