"""The store: a folder of artefacts, each under a key made of everything that determines it.

An artefact is a folder with its files and an `artifact.json` that holds the recipe and every file's SHA-256. It is
written under a temporary name and renamed when it is whole, so a folder under its final name is complete. What
does not match its digests is set aside and built again. Whoever builds an artefact holds its lock; the system frees
the locks of a process that died.
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

from robobench.errors import ArtifactError, RequestError, StorageError

MANIFEST = "artifact.json"
WEIGHT_FILES = {"last": "model.safetensors", "best": "best.safetensors"}  # of a trained network, by selection
SET_ASIDE = (".damaged-", ".replaced-")  # marks in a folder's name; such a folder is never read again


def canonical(value: Any) -> str:
    """Spell plain values in one way only, for hashing."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)


def key_of(recipe: dict[str, Any]) -> str:
    """Hash a recipe to the 16 hex digits that name its artefact."""
    return hashlib.sha256(canonical(recipe).encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes; a process reads them once, until the file changes."""
    state = path.stat()
    return _digest(path, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


@lru_cache(maxsize=4096)
def _digest(path: Path, *state: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(path: Path, text: str) -> None:
    """Replace a file by its new text in one step: readers see the old or the new one, never half.

    Raises:
        StorageError: the file cannot be written; the old one is as it was.
    """
    with storing(path):
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
def storing(what: Path) -> Iterator[None]:
    """Turn the system's refusal to write into a StorageError that says what to do."""
    try:
        yield
    except (OSError, SafetensorError) as err:
        why = getattr(err, "strerror", None) or str(err).split("(os error")[0].removeprefix("Error while serializing: ")
        raise StorageError(
            f"cannot write '{what}' ({why.strip()}); mend that, and the same command goes on from what is finished"
        ) from err


def synchronize(path: Path) -> None:
    """Wait until a file is on the disk, so that a rename after it never shows half of it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_writable(root: Path, flag: str = "--out") -> None:
    """Raise RequestError where the folder of a flag could not be made or written; creates nothing."""
    existing = root
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise RequestError(f"{flag} '{root}' cannot be written ('{existing}'); choose another folder")


class Store:
    """Artefacts under one root folder.

    Args:
        fresh: what this object did not build itself is set aside instead of found.
        tell: gets a line for each artefact set aside because it is damaged, and for each wait.
    """

    def __init__(self, root: Path, *, fresh: bool = False, tell: Callable[[str], None] = lambda line: None) -> None:
        self.root, self.fresh, self.tell = root, fresh, tell
        self._own: set[Path] = set()  # built, or begun, by this object

    def folder(self, kind: str, name: str) -> Path:
        """Return where an artefact lives. Trained models stand at the top, the rest under artifacts/."""
        return self.root / name if kind == "model" else self.root / "artifacts" / kind / name

    def _lock(self, kind: str, name: str) -> Path:
        return self.root / "artifacts" / "locks" / f"{kind}-{name}.lock"

    def busy(self, kind: str, name: str) -> bool:
        """Say whether somebody is at work on an artefact, or was killed at it; for people only."""
        return self._lock(kind, name).with_suffix(".owner").exists()

    @contextmanager
    def lock(self, kind: str, name: str) -> Iterator[None]:
        """Hold the right to build an artefact; wait for another process that has it, and say for which."""
        path = self._lock(kind, name)
        owner = path.with_suffix(".owner")
        with storing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                with contextlib.suppress(OSError):
                    self.tell(f"waiting for {owner.read_text()}, which works on {kind} '{name}'")
                lock.acquire()
        try:
            with contextlib.suppress(OSError):  # for people only
                owner.write_text(f"process {os.getpid()} on host {socket.gethostname()}")
            yield
        finally:
            with contextlib.suppress(OSError):
                owner.unlink()
            lock.release()

    @contextmanager
    def building(self, kind: str, name: str, recipe: dict[str, Any]) -> Iterator[Path]:
        """Give a temporary folder to fill; on leaving without an error it becomes the artefact.

        The caller holds the artefact's lock, so what another build left behind is of a process that died.

        Raises:
            StorageError: it cannot be written; what was there before is as it was.
        """
        final = self.folder(kind, name)
        work, old = (final.with_name(f".{final.name}.{end}") for end in ("building", "old"))
        try:
            with storing(final):
                for left in (work, old):
                    shutil.rmtree(left, ignore_errors=True)
                work.mkdir(parents=True)
                yield work
                files = {p.name: file_digest(p) for p in sorted(work.iterdir()) if p.is_file()}
                made = json.loads(canonical({"name": name, "recipe": recipe, "files": files}))
                (work / MANIFEST).write_text(json.dumps({**made, "digest": key_of(made)}, indent=1))
                for path in work.iterdir():
                    synchronize(path)
                if final.exists():  # a failed cell is being replaced
                    os.rename(final, old)
                os.rename(work, final)
                self._own.add(final)
                shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def find(self, kind: str, name: str, *files: str) -> Path | None:
        """Return an artefact's folder if it is there and whole; a damaged one is set aside first.

        Args:
            files: the only ones to be verified, where not all matter.
        """
        folder = self.folder(kind, name)
        if not folder.is_dir():
            return None
        if self.fresh and folder not in self._own:
            self.set_aside(folder, ".replaced-")
            return None
        try:
            self.verify(folder, *files)
        except ArtifactError as err:
            aside = self.set_aside(folder, ".damaged-")
            self.tell(f"{err}; it was set aside as '{aside.name}' and is built again when it is needed")
            return None
        return folder

    def begin(self, kind: str) -> None:
        """Set the unfinished work of a kind aside where everything is to be made anew."""
        folder = self.root / "artifacts" / kind
        if self.fresh and folder not in self._own and folder.is_dir():
            self.set_aside(folder, ".replaced-")
        self._own.add(folder)

    def discard(self, kind: str) -> None:
        """Remove unfinished work that is no longer needed."""
        shutil.rmtree(self.root / "artifacts" / kind, ignore_errors=True)

    def digest(self, kind: str, name: str, file: str) -> str:
        """Return the SHA-256 a file of an artefact was stored with; raises ArtifactError."""
        return str(self.manifest(self.folder(kind, name))["files"][file])

    def trained(self, defense: str, digest: str | None) -> Path | None:
        """Return the folder of the network of `defense` whose weights file has this SHA-256, if there is one."""
        for folder in self.manifests("model"):
            manifest = self.manifest(folder)
            if manifest["recipe"].get("defense") == defense and digest in manifest["files"].values():
                return folder
        return None

    def stage(self, training: dict[str, Any], name: str) -> Path | None:
        """Return what the stage `name` left in the training of this recipe, or None where it is not in the store.

        Trainings that differ only in values a stage does not depend on share it.
        """
        for folder in self.manifests("stages"):
            made = self.manifest(folder)["recipe"]
            config = {field: training["config"].get(field) for field in made["training"].get("config", {})}
            if made["stage"] == name and canonical(made["training"]) == canonical({**training, "config": config}):
                return folder
        return None

    @staticmethod
    def manifest(folder: Path) -> dict[str, Any]:
        """Read what an artefact says of itself; raises ArtifactError where that is not what was written."""
        try:
            made: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
            if made.pop("digest") != key_of(made):
                raise ArtifactError(f"'{folder / MANIFEST}' has changed since it was written")
            if made["name"] != folder.name:
                raise ArtifactError(f"'{folder}' was stored as '{made['name']}'")
            if not isinstance(made["files"], dict):
                raise TypeError("files")
            return made
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
            raise ArtifactError(f"'{folder}' is damaged ({_why(err)})") from None

    @classmethod
    def verify(cls, folder: Path, *files: str) -> None:
        """Raise ArtifactError unless every file of an artefact (or those named) has the digest it was stored with."""
        digests = cls.manifest(folder)["files"]
        try:
            for name in files or digests:
                if file_digest(folder / name) != digests[name]:
                    raise ArtifactError(f"'{folder / name}' has changed since it was written")
        except (OSError, KeyError, TypeError, ValueError) as err:
            raise ArtifactError(f"'{folder}' is damaged ({_why(err)})") from None

    @staticmethod
    def set_aside(folder: Path, mark: str) -> Path:
        """Rename an artefact out of the way, so that nothing reads it and nothing is lost; return its new place."""
        number = 1
        while (aside := folder.with_name(f"{folder.name}{mark}{number}")).exists():
            number += 1
        with storing(folder), contextlib.suppress(FileNotFoundError):  # another process was faster
            os.rename(folder, aside)
        return aside

    def manifests(self, kind: str) -> Iterator[Path]:
        """Walk the folders of a kind's artefacts: not those set aside or half-written."""
        top = self.root if kind == "model" else self.root / "artifacts" / kind
        if top.is_dir():
            for folder in sorted(top.iterdir()):
                aside = folder.name.startswith(".") or any(mark in folder.name for mark in SET_ASIDE)
                if not aside and folder.is_dir() and (kind != "model" or (folder / MANIFEST).is_file()):
                    yield folder

    def walk(self) -> Iterator[tuple[str, Path]]:
        """Give every folder of the store that holds files, whole or not, with its kind."""
        own = {MANIFEST, "model.safetensors", "config.json", "timing.json"}
        for place, _, files in sorted(os.walk(self.root)):
            folder = Path(place)
            parts = folder.relative_to(self.root).parts
            if len(parts) == 1 and own & set(files):
                yield "model", folder
            elif len(parts) > 2 and parts[0] == "artifacts" and files:
                yield parts[1], folder


def _why(err: Exception) -> str:
    """Say in a few words what is wrong with a folder."""
    if isinstance(err, OSError):
        return f"{Path(err.filename or '').name}: {err.strerror}"
    return f"its {MANIFEST} is not what was written"
