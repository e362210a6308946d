"""Read weights from the usual file formats and load them strictly. Code in a file is never executed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robobench.errors import RequestError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from robobench.models.wrapper import PreprocessedModel


CONTAINERS = ("state_dict", "model_state_dict", "model", "net", "last", "best")  # keys of a nested state dict
PREFIXES = ("module.", "model.", "_orig_mod.", "1.")  # DataParallel, Lightning, torch.compile, Sequential
NORMALIZATION_KEYS = ("mu", "sigma", "mean", "std")  # other projects save normalization; ours is in the model's spec


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from a safetensors file or a file of torch.save.

    Nested dicts (CONTAINERS) are unpacked, and prefixes that all keys share (PREFIXES) are removed.

    Raises:
        RequestError: the file is missing, damaged, holds no weights, or is a pickle that would run code.
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
    except Exception as err:  # many types: damage of zip, pickle or header; a pickle with code
        why = " ".join(str(err).split()).split(". ")[0][:120]
        raise RequestError(f"cannot read weights from '{path}' ({type(err).__name__}: {why}); {allowed}") from err
    while isinstance(found, dict) and (inner := [found[c] for c in CONTAINERS if isinstance(found.get(c), dict)]):
        found = inner[0]
    if not isinstance(found, dict) or not any(isinstance(v, torch.Tensor) for v in found.values()):
        raise RequestError(f"'{path}' holds {_describe(found)}, not a state dict; {allowed}")
    others = [str(k) for k, v in found.items() if not isinstance(v, torch.Tensor)]
    if others:
        raise RequestError(f"entry '{others[0]}' of '{path}' is not a tensor; {allowed}")
    return _strip_prefixes(found)


def _is_normalization_constant(key: str, value: Tensor) -> bool:
    """Return True if an entry may be a mean or standard deviation of a normalization layer."""
    return key.split(".")[-1] in NORMALIZATION_KEYS and value.numel() <= 3


def _strip_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove prefixes that all keys share. Normalization constants may lack the prefix."""
    for prefix in PREFIXES * 2:
        keys = [key for key, value in state.items() if not _is_normalization_constant(key, value)]
        if keys and all(key.startswith(prefix) for key in keys):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _describe(found: object) -> str:
    """Describe the content of a file for an error message."""
    if isinstance(found, dict):
        keys = ", ".join(map(str, list(found)[:4]))
        return f"a dict with {keys}" if keys else "an empty dict"
    return f"a {type(found).__name__}"


def _match_names(model: PreprocessedModel, found: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return a file's entries under the model's names, and the normalization constants that the model does not have.

    Of all known naming schemes, the one with the most names of the model is used.
    """
    expected = model.state_dict().keys()
    schemes: list[Callable[[str], str]] = [str, model.map_key, lambda key: model.map_key(key.removeprefix("net."))]
    schemes += [lambda key, prefix=prefix: f"net.{prefix}{key}" for prefix in PREFIXES]  # type: ignore[misc]
    constants = {key: value for key, value in found.items() if _is_normalization_constant(key, value)}
    renamed = [{name(key): value for key, value in found.items() if key not in constants} for name in schemes]
    state, unused = max(renamed, key=lambda entries: len(entries.keys() & expected)), {}
    for key, value in constants.items():
        match = next((name(key) for name in schemes if name(key) in expected), None)
        if match is None:
            unused[key] = value
        else:
            state[match] = value
    return state, unused


def infer_class_count(model: PreprocessedModel, found: dict[str, Tensor], num_classes: int) -> int:
    """Return the number of classes of a file's weights; `num_classes` if it cannot be inferred.

    The head is found by comparison with a model for `num_classes`: only its first dimension may differ.

    Args:
        model: the same architecture, for `num_classes`.
        found: the file's entries, as `read_weights` returns them.
    """
    state, _ = _match_names(model, found)
    ours = {key: value.shape for key, value in model.state_dict().items() if key in state}
    heads = [key for key, shape in ours.items() if len(shape) and shape[0] == num_classes]
    counts = {
        state[key].shape[0] for key in heads if state[key].shape != ours[key] and state[key].shape[1:] == ours[key][1:]
    }
    return int(counts.pop()) if len(counts) == 1 else num_classes


def load_weights(model: PreprocessedModel, path: str | Path) -> list[str]:
    """Load a weights file into a model, strictly. The file may use our parameter names or the unwrapped network's.

    Returns:
        One warning for each normalization constant of the file that differs from the model's normalization.

    Raises:
        RequestError: as `read_weights`; another number of classes; a missing or unexpected entry or a wrong shape.
    """
    expected = model.state_dict()
    state, unused = _match_names(model, read_weights(path))
    for key in expected.keys() - state.keys():
        tail = key.split(".")[-1]  # older files lack num_batches_tracked, which is unused, or normalization constants
        if tail == "num_batches_tracked" or (tail in NORMALIZATION_KEYS and expected[key].numel() <= 3):
            state[key] = expected[key]
    _check_entries(expected, state, path)
    model.load_state_dict(state)
    warnings = (_normalization_warning(model, key, value, path) for key, value in unused.items())
    return [warning for warning in warnings if warning is not None]


def _check_entries(expected: dict[str, Tensor], state: dict[str, Tensor], path: str | Path) -> None:
    """Raise RequestError unless a file's entries have the names and shapes of the model's."""
    missing, unexpected = [k for k in expected if k not in state], [k for k in state if k not in expected]
    if missing or unexpected:
        first = f"'{missing[0]}' is missing" if missing else f"'{unexpected[0]}' is unexpected"
        raise RequestError(
            f"weights '{path}' do not fit the model: {first} ({len(missing)} missing, {len(unexpected)} "
            f"unexpected of {len(expected)}); give the --model, stem and image size they were trained with"
        )
    found, classes = (len(s["head.weight"]) if "head.weight" in s else 0 for s in (state, expected))
    if found != classes:
        raise RequestError(
            f"weights '{path}' have {found} classes, the data set has {classes}; give weights or a data set that match"
        )
    for key, value in expected.items():
        if state[key].shape != value.shape:
            raise RequestError(
                f"weights '{path}' do not fit the model: '{key}' has shape {tuple(state[key].shape)}, "
                f"not {tuple(value.shape)}; give the --model, stem and image size they were trained with"
            )


def _normalization_warning(model: PreprocessedModel, key: str, value: Tensor, path: str | Path) -> str | None:
    """Return a warning if a normalization constant of a file differs from the model's; else None."""
    ours = (model.mean if key.split(".")[-1] in ("mean", "mu") else model.std).flatten().cpu()
    theirs = value.flatten().cpu()
    if not model.normalizes_input or len(theirs) not in (1, 3) or not bool(((theirs - ours).abs() > 0.01).any()):
        return None
    file_values, model_values = (", ".join(f"{v:.4g}" for v in values.tolist()) for values in (theirs, ours))
    return (
        f"weights '{path}' hold '{key}' = {file_values}, the model normalizes with {model_values}; give --mean and "
        "--std if they were trained with theirs"
    )


def state_digest(module: nn.Module) -> str:
    """Return the SHA-256 of a model's parameters and buffers."""
    import torch

    digest = hashlib.sha256()
    for value in module.state_dict().values():
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
