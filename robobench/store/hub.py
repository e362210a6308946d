"""Stores and models on the Hugging Face Hub: hf:OWNER/REPO[@REVISION][/NAME].

Tables, JSON and safetensors are downloaded, nothing else, so no code and no pickle of a repository is ever read. Every
file of an artifact must match the digest in its manifest. A REVISION that is a commit hash fixes the content.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robobench.errors import ArtifactError, RequestError
from robobench.store.artifacts import MANIFEST, WEIGHT_FILES, Store, file_digest

PREFIX = "hf:"
FORM = "hf:OWNER/REPO[@REVISION]"
NAME = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?(?:/(?P<model>[\w.+-]+))?")
TEXTS = (".json", ".csv", ".md", ".log")
WEIGHTS = WEIGHT_FILES["last"]  # the file of a repository that robobench did not make


@dataclass(frozen=True)
class HubName:
    """A parsed hf:OWNER/REPO[@REVISION][/NAME]."""

    text: str
    repo: str
    revision: str | None
    model: str | None  # folder of one model of several

    @classmethod
    def parse(cls, text: str | Path) -> HubName:
        """Parse a name; raises RequestError."""
        match = NAME.fullmatch(str(text))
        if match is None:
            raise RequestError(f"'{text}' is no name of the Hub; write {FORM}, and /NAME for one model of several")
        return cls(str(text), match["repo"], match["revision"], match["model"])


def is_hub_name(value: object) -> bool:
    """Return whether a text or path names a repository of the Hub."""
    return isinstance(value, (str, Path)) and str(value).startswith(PREFIX)


def hub_client() -> Any:
    """Return huggingface_hub's client for $HF_ENDPOINT."""
    from huggingface_hub import HfApi

    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"), library_name="robobench")


@contextmanager
def hub_errors(text: str, action: str) -> Iterator[None]:
    """Turn errors of the Hub and of the network into a RequestError."""
    import huggingface_hub.utils as hub

    hub.disable_progress_bars()  # type: ignore[attr-defined]
    try:
        yield
    except (RequestError, ArtifactError):
        raise
    except Exception as err:  # huggingface_hub raises types of its own, of httpx or requests, and OSError
        why = " ".join(str(err).split()).split(". ")[0][:160] or type(err).__name__
        raise RequestError(
            f"'{text}' cannot be {action} ({type(err).__name__}: {why}); check the name and the network, and log in "
            "with `hf auth login` if it is private"
        ) from err


def fetch_store(place: str | Path, *, weights: bool = True) -> Path:
    """Return the local folder of a store or board; one of the Hub is downloaded and verified.

    Args:
        weights: download weights too.

    Raises:
        RequestError: no such repository, or it holds no results of robobench.
        ArtifactError: a file does not match its digest.
    """
    if not is_hub_name(place):
        return Path(place)
    name = HubName.parse(place)
    if name.model is not None:
        raise RequestError(f"'{place}' names one model; leave '/{name.model}' out, and choose it with a filter")
    root = _download(name, *(f"*{end}" for end in (*TEXTS, *([".safetensors"] if weights else []))))
    folders = [folder for kind in ("model", "evaluations") for folder in Store(root).iter_artifacts(kind)]
    if not folders:
        raise RequestError(f"'{place}' holds no results of robobench; push a store with `robobench push`")
    for folder in folders:
        _verify(name, folder, lambda file: weights or not file.endswith(".safetensors"))
    return root


def fetch_model(text: str | Path) -> Path:
    """Download a model, verify it, and return its folder; for a repository that robobench did not make, its weights.

    Raises:
        RequestError: no such repository or model, no safetensors, or several models and no /NAME.
        ArtifactError: a file does not match its digest.
    """
    name = HubName.parse(text)
    root = _download(name, "*.json")
    store = Store(root)
    models = [folder.name for folder in store.iter_artifacts("model")]
    if not models:
        file = _download(name, WEIGHTS) / WEIGHTS
        if not file.is_file():
            raise RequestError(f"'{text}' has no {WEIGHTS}; robobench reads no other weights from the Hub")
        digest = file.resolve().name  # in the cache, a large file is named by the SHA-256 that the Hub states
        if re.fullmatch(r"[0-9a-f]{64}", digest) and file_digest(file.resolve()) != digest:
            raise ArtifactError(f"'{text}': checksum mismatch in '{WEIGHTS}'; delete it from the cache and try again")
        return file
    if name.model is None:  # sources of transfer examples have no records
        records = [folder / "record.json" for folder in store.iter_artifacts("evaluations")]
        attacked = {json.loads(file.read_text())["training"] for file in records}
        models = sorted(attacked & {*models}) or models
    chosen = [m for m in models if name.model in (None, m)]
    if len(chosen) != 1:
        what = f"{len(models)} models" if name.model is None else f"no model '{name.model}'"
        raise RequestError(f"'{text}' holds {what}; add one of: /{', /'.join(models)}")
    _download(name, *(f"{chosen[0]}/*{end}" for end in (*TEXTS, ".safetensors")))
    _verify(name, root / chosen[0], lambda file: True)
    return root / chosen[0]


def _download(name: HubName, *patterns: str) -> Path:
    """Download the files that match, unless they are in the cache; return the folder of the commit."""
    with hub_errors(name.text, "read"):
        folder = hub_client().snapshot_download(name.repo, revision=name.revision, allow_patterns=[*patterns])
    return Path(folder)


def _verify(name: HubName, folder: Path, wanted: Callable[[str], bool]) -> None:
    """Raise ArtifactError unless the wanted files of an artifact match their digests."""
    try:
        Store.verify(folder, *filter(wanted, Store.manifest(folder)["files"]))
    except ArtifactError as err:
        raise ArtifactError(f"'{name.text}' is refused: {err}") from None


def upload(folder: Path, name: HubName, *, private: bool = False) -> str:
    """Upload a folder as one commit, and return the commit. Tables, JSON and weights of an earlier push are replaced.

    Raises:
        RequestError: the Hub refuses it, or the repository holds something else.
    """
    from huggingface_hub import CommitOperationAdd as Add
    from huggingface_hub import CommitOperationDelete as Delete
    from huggingface_hub.errors import RepositoryNotFoundError

    client = hub_client()
    with hub_errors(name.text, "written"):
        try:
            present = set(client.list_repo_files(name.repo)) - {".gitattributes", "README.md"}
        except RepositoryNotFoundError:
            client.create_repo(name.repo, private=private)
            present = set()
        if present and not any(file.endswith(f"/{MANIFEST}") for file in present):
            raise RequestError(f"'{name.text}' holds other files ({min(present)}); choose a new repository")
        files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
        old = [file for file in present - files.keys() if file.endswith((*TEXTS, ".safetensors"))]
        operations = [*(Add(file, path) for file, path in files.items()), *map(Delete, sorted(old))]
        commit = client.create_commit(name.repo, operations, commit_message="Upload with robobench push")
    return str(commit.oid)
