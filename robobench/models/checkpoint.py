"""Find the state dicts in a weights file, whatever the keys under which they lie. No code of a file is executed."""

from __future__ import annotations

import re
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robobench.errors import RequestError, one_line
from robobench.models.unpickle import Inert, load_inert

if TYPE_CHECKING:
    from torch import Tensor

ALLOWED = "give a safetensors file or a state dict saved by torch.save"
SAVE_ALONE = "in the project that made it, save the weights alone: torch.save(model.state_dict(), 'weights.pt')"
MAX_DEPTH = 6  # of nested dictionaries


@dataclass(frozen=True)
class StateDict:
    """A dictionary of tensors in a weights file."""

    name: str  # the keys that lead to it, joined with dots; "" if it is the whole file
    tensors: dict[str, Tensor]


def read_state_dicts(path: str | Path) -> list[StateDict]:
    """Read every dictionary of tensors in a safetensors file or a file of torch.save, in their order.

    The state of an optimizer is left out. A dictionary of several state dicts, such as `backbone` and `head`, is also
    returned as one, with dotted names.

    Raises:
        RequestError: the file is missing, damaged, or holds no weights.
    """
    path = Path(path)
    head = check_file(path)
    found: Any
    try:
        if path.suffix == ".safetensors" or head[8:9] == b"{":
            from safetensors.torch import load_file

            found = load_file(path)
        else:
            found = load_inert(path)
    except Exception as err:  # many types: damage of zip, pickle or header
        why = one_line(err).split(". ")[0][:140]
        raise RequestError(f"cannot read weights from '{path}' ({why}); {ALLOWED}") from err
    dicts = list(_find(found))
    if not dicts:
        raise RequestError(f"'{path}' holds {_describe(found)}")
    return dicts


def check_file(path: Path) -> bytes:
    """Return the first bytes of a weights file; raises RequestError if it is missing or of another format."""
    if not path.is_file():
        number = re.fullmatch(r"[\d./]+", str(path))
        hint = f"; several radii are separated by commas: --eps 8/255,{path}" if number else ""
        raise RequestError(f"no weights file '{path}'; {ALLOWED}{hint}")
    with path.open("rb") as file:
        head = file.read(512)
    foreign = _name_foreign_format(path, head)
    if foreign:
        raise RequestError(f"'{path}' is {foreign}")
    return head


def _find(found: Any, name: str = "", depth: int = 0) -> Iterator[StateDict]:
    """Yield the dictionaries of tensors in nested dictionaries, outer ones first."""
    import torch

    if isinstance(found, (tuple, list)):  # such as (state dict, accuracy); several are refused by `_describe`
        inside = [state for item in found for state in _find(item, name, depth + 1)]
        yield from inside if len(inside) == 1 else ()
        return
    if not isinstance(found, dict) or depth > MAX_DEPTH or {"state", "param_groups"} <= found.keys():
        return
    tensors = {str(key): value for key, value in found.items() if isinstance(value, torch.Tensor)}
    inner: list[StateDict] = []
    for key, value in found.items():
        inner += _find(value, f"{name}.{key}".lstrip("."), depth + 1)
    direct = [state for state in inner if "." not in state.name.removeprefix(name).lstrip(".")]
    if any(value.dim() and value.is_floating_point() for value in tensors.values()):
        yield StateDict(name, tensors)
    yield from inner
    if len(direct) > 1:
        own = {state.name.removeprefix(name).lstrip("."): state.tensors for state in direct}
        yield StateDict(name, {f"{part}.{key}": value for part, state in own.items() for key, value in state.items()})


def _describe(found: Any) -> str:
    """Say what a file without a state dict holds, and what to do."""
    places = [("", found), *(found.items() if isinstance(found, dict) else ())]
    for key, value in places:
        where = f" under '{key}'" if key else ""
        if isinstance(value, Inert) and isinstance(value.state, dict) and "_modules" in value.state:
            return f"a whole pickled module '{value.origin}'{where}, which would run its code; {SAVE_ALONE}"
        if isinstance(value, (list, tuple)) and any(list(_find(item)) for item in value):
            return (
                f"a list of {len(value)} state dicts{where}; save the one to use: torch.save(states[0], 'weights.pt')"
            )
    if isinstance(found, Inert):
        return f"an object of class '{found.origin}', not a state dict; {SAVE_ALONE}"
    if isinstance(found, dict):
        keys = ", ".join(map(str, list(found)[:4]))
        return f"a dict with {keys}, not a state dict; {ALLOWED}" if keys else f"an empty dict; {ALLOWED}"
    return f"a {type(found).__name__}, not a state dict; {ALLOWED}"


def _name_foreign_format(path: Path, head: bytes) -> str | None:
    """Name the format of a file that is no weights file of PyTorch, and what to do; None if it may be one."""
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html")):
        return "a web page, not weights; download the file itself"
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not weights; fetch the file with: git lfs pull"
    if path.suffix.lower() == ".onnx":
        return (
            "an ONNX model; convert it in a function of yours (package onnx2torch), and give --model FILE.py:FUNCTION"
        )
    if head.startswith(b"\x89HDF"):
        return "an HDF5 file of Keras; convert it to PyTorch, and save model.state_dict()"
    if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ")):
        return "compressed; unpack it, and give the file inside"
    if head.startswith(b"PK\x03\x04"):
        return _name_foreign_zip(path)
    if tarfile.is_tarfile(path):
        return "a tar archive; unpack it, and give the weights file inside"
    return None


def _name_foreign_zip(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.rpartition("/")[2] for name in archive.namelist()]
    except zipfile.BadZipFile:  # damaged
        return None
    if "constants.pkl" in names:
        return (
            "a TorchScript program; save its weights, and give the model's code as --model: "
            f"torch.save(torch.jit.load('{path}').state_dict(), 'weights.pt')"
        )
    if "data.pkl" in names:
        return None
    if path.suffix == ".pt2" or "archive_format" in names:
        return (
            f"an exported program; save its weights: torch.save(torch.export.load('{path}').state_dict, 'weights.pt')"
        )
    if all(name.endswith(".npy") for name in names):
        return "an archive of numpy arrays; save a state dict of tensors with torch.save"
    return "a zip archive; unpack it, and give the weights file inside"
