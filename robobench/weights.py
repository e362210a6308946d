"""Reads a network's weights from any usual file, and loads them strictly; no code in a file ever runs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robobench.errors import RequestError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from robobench.architectures import Prepared

CONTAINERS = ("state_dict", "model_state_dict", "model", "net", "last", "best")
PREFIXES = ("module.", "model.", "_orig_mod.", "1.")  # DataParallel, Lightning, torch.compile, after a normalization
STRAYS = ("mu", "sigma", "mean", "std")  # a stranger's normalization; ours is in the model's spec


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from safetensors, or from what torch.save wrote, in any usual wrapping.

    Containers ('state_dict', 'model', 'net', 'last', 'best') are opened, prefixes ('module.', 'model.') stripped,
    stored normalization constants dropped.

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
    return _plain(found)


def _plain(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drop stored normalization constants and the prefixes that every key shares."""
    state = {k: v for k, v in state.items() if not (k.split(".")[-1] in STRAYS and v.numel() <= 3)}
    for prefix in PREFIXES * 2:
        if state and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _contents(found: object) -> str:
    """Say what a file holds, for the message that refuses it."""
    if isinstance(found, dict):
        keys = ", ".join(map(str, list(found)[:4]))
        return f"a dict with {keys}" if keys else "an empty dict"
    return f"a {type(found).__name__}"


def load_weights(model: Prepared, path: str | Path) -> None:
    """Load a file into a built model, strictly; its names may be ours or those of the bare network.

    Raises:
        RequestError: as `read_weights`; another number of classes; a missing, unexpected or misshapen entry.
    """
    found, own = read_weights(path), model.state_dict()
    names: list[Callable[[str], str]] = [str, model.own_key, lambda key: model.own_key(key.removeprefix("net."))]
    names += [lambda key, prefix=prefix: f"net.{prefix}{key}" for prefix in PREFIXES]  # type: ignore[misc]
    layouts = [{name(key): value for key, value in found.items()} for name in names]
    state = max(layouts, key=lambda layout: len(layout.keys() & own.keys()))
    for key in own.keys() - state.keys():
        tail = key.split(".")[-1]  # older files lack the count, which nothing reads; constants were dropped above
        if tail == "num_batches_tracked" or (tail in STRAYS and own[key].numel() <= 3):
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


def state_digest(module: nn.Module) -> str:
    """SHA-256 over the bytes of a network's weights and buffers."""
    import torch

    digest = hashlib.sha256()
    for value in module.state_dict().values():
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
