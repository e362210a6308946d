"""Reads a network's weights from any usual file, and loads them strictly; no code in a file ever runs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robobench.errors import RequestError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from robobench.models.wrapper import PreprocessedModel


CONTAINERS = ("state_dict", "model_state_dict", "model", "net", "last", "best")

PREFIXES = ("module.", "model.", "_orig_mod.", "1.")  # DataParallel, Lightning, torch.compile, after a normalization

NORMALIZATION_KEYS = ("mu", "sigma", "mean", "std")  # a stranger's normalization; ours is in the model's spec


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from safetensors, or from what torch.save wrote, in any usual wrapping.

    Containers ('state_dict', 'model', 'net', 'last', 'best') are opened, prefixes ('module.', 'model.') stripped.

    Raises:
        RequestError: no such file, damaged, not weights, or a pickle that would run code.
    """
    import torch

    path = Path(path)
    allowed = "give a safetensors file or a state dict saved by torch.save"
    if not path.is_file():
        raise RequestError(f"no weights file '{path}'; {allowed}")
    found: Any
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as err:  # damaged files fail in many ways, and code in a pickle in one more
        why = " ".join(str(err).split()).split(". ")[0][:120]
        raise RequestError(f"cannot read weights from '{path}' ({type(err).__name__}: {why}); {allowed}") from err
    while isinstance(found, dict) and (inner := [found[c] for c in CONTAINERS if isinstance(found.get(c), dict)]):
        found = inner[0]
    if not isinstance(found, dict) or not any(isinstance(v, torch.Tensor) for v in found.values()):
        raise RequestError(f"'{path}' holds no state dict but {_contents(found)}; {allowed}")
    strangers = [str(k) for k, v in found.items() if not isinstance(v, torch.Tensor)]
    if strangers:
        raise RequestError(f"'{path}' holds '{strangers[0]}' among its weights, which is no tensor; {allowed}")
    return _strip_prefixes(found)


def _is_normalization_constant(key: str, value: Tensor) -> bool:
    """Tell whether an entry may be a constant of a normalization."""
    return key.split(".")[-1] in NORMALIZATION_KEYS and value.numel() <= 3


def _strip_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drop the prefixes that every key shares, but for normalization constants, which may stand beside the network."""
    for prefix in PREFIXES * 2:
        keys = [key for key, value in state.items() if not _is_normalization_constant(key, value)]
        if keys and all(key.startswith(prefix) for key in keys):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _contents(found: object) -> str:
    """Say what a file holds, for the message that refuses it."""
    if isinstance(found, dict):
        keys = ", ".join(map(str, list(found)[:4]))
        return f"a dict with {keys}" if keys else "an empty dict"
    return f"a {type(found).__name__}"


def _named(model: PreprocessedModel, found: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return a file's entries by the model's names for them, and normalization constants that the model has not."""
    own = model.state_dict().keys()
    names: list[Callable[[str], str]] = [str, model.map_key, lambda key: model.map_key(key.removeprefix("net."))]
    names += [lambda key, prefix=prefix: f"net.{prefix}{key}" for prefix in PREFIXES]  # type: ignore[misc]
    strays = {key: value for key, value in found.items() if _is_normalization_constant(key, value)}
    layouts = [{name(key): value for key, value in found.items() if key not in strays} for name in names]
    state, foreign = max(layouts, key=lambda layout: len(layout.keys() & own)), {}
    for key, value in strays.items():
        mine = next((name(key) for name in names if name(key) in own), None)
        if mine is None:
            foreign[key] = value
        else:
            state[mine] = value
    return state, foreign


def infer_class_count(model: PreprocessedModel, found: dict[str, Tensor], classes: int) -> int:
    """Return for how many classes a file's entries are, given a model like theirs for `classes`; that where none tells.

    The head is what differs between networks for different numbers of classes, in its first dimension only.
    """
    state, _ = _named(model, found)
    heads = [key for key, value in model.state_dict().items() if value.dim() and len(value) == classes and key in state]
    shapes = {key: (state[key].shape, model.state_dict()[key].shape) for key in heads}
    others = {theirs[0] for theirs, ours in shapes.values() if theirs != ours and theirs[1:] == ours[1:]}
    return int(others.pop()) if len(others) == 1 else classes


def load_weights(model: PreprocessedModel, path: str | Path) -> list[str]:
    """Load a file into a built model, strictly; its names may be ours or those of the bare network.

    Returns:
        A line for each normalization constant of the file that the model has not, and that differs from the model's.

    Raises:
        RequestError: as `read_weights`; another number of classes; a missing, unexpected or misshapen entry.
    """
    own = model.state_dict()
    state, foreign = _named(model, read_weights(path))
    for key in own.keys() - state.keys():
        tail = key.split(".")[-1]  # older files lack the count, which nothing reads, or hold no constants
        if tail == "num_batches_tracked" or (tail in NORMALIZATION_KEYS and own[key].numel() <= 3):
            state[key] = own[key]
    missing, unexpected = [k for k in own if k not in state], [k for k in state if k not in own]
    if missing or unexpected:
        first = f"'{missing[0]}' is missing" if missing else f"'{unexpected[0]}' is unexpected"
        raise RequestError(
            f"weights '{path}' do not fit the model: {first} ({len(missing)} missing, {len(unexpected)} "
            f"unexpected of {len(own)}); give the --model, stem and image size they were trained with"
        )
    classes, own_classes = (len(s["head.weight"]) if "head.weight" in s else 0 for s in (state, own))
    if classes != own_classes:
        raise RequestError(
            f"weights '{path}' have {classes} classes, the data set has {own_classes}; give weights or a data set "
            "that match"
        )
    for key, value in own.items():
        if state[key].shape != value.shape:
            raise RequestError(
                f"weights '{path}' do not fit the model: '{key}' has shape {tuple(state[key].shape)}, "
                f"not {tuple(value.shape)}; give the --model, stem and image size they were trained with"
            )
    model.load_state_dict(state)
    said = []
    for key, value in foreign.items():
        ours = (model.mean if key.split(".")[-1] in ("mean", "mu") else model.std).flatten().cpu()
        if (
            model.normalizes_input
            and value.numel() in (1, 3)
            and bool(((value.flatten().cpu() - ours).abs() > 0.01).any())
        ):
            theirs, own_values = (", ".join(f"{v:.4g}" for v in values.flatten().tolist()) for values in (value, ours))
            said.append(
                f"weights '{path}' hold '{key}' = {theirs}, the model normalizes with {own_values}; give --mean and "
                "--std if they were trained with theirs"
            )
    return said


def state_digest(module: nn.Module) -> str:
    """SHA-256 over the bytes of a network's weights and buffers."""
    import torch

    digest = hashlib.sha256()
    for value in module.state_dict().values():
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
