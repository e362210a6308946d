"""Load weights files into models: match names, strip prefixes, choose one of several models, and check every shape."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from robobench.errors import RequestError
from robobench.models.checkpoint import StateDict, read_state_dicts

if TYPE_CHECKING:
    from torch import Tensor, nn

    from robobench.models.wrapper import PreprocessedModel

# Other projects save normalization as mean, mu, new_mean, means, sigma, std or sds; ours is in the model's spec.
MEAN_NAME = re.compile(r"(^|_)(means?|mu)$")
STD_NAME = re.compile(r"(^|_)(stds?|sds?|sigma)$")
# Buffers that older or instrumented projects save in each module, and that no computation reads.
BOOKKEEPING = ("num_batches_tracked", "relative_position_index", "attn_mask", "total_ops", "total_params")
MAX_NAMED = 5  # parts of a file in a note
# Words in the keys of a model that is used only if there is no other.
SECOND_CHOICE = (
    "ema",
    "swa",
    "avg",
    "average",
    "averaged",
    "shadow",
    "best",
    "teacher",
    "target",
    "attacker",
    "momentum",
)


@dataclass(frozen=True)
class WeightsMatch:
    """Entries of a weights file under the names of a model.

    Attributes:
        label: keys and prefix of the chosen state dict in the file.
        state: entries of the file that have a name of the model.
        constants: normalization constants of the file that the model does not have.
        unused: names in the file of all other entries beside those of `state`.
        intruders: those of `unused` inside a part that the model has, such as a further block of a layer.
        complete: every entry of the model is there, with its shape, and there are no intruders.
        score: number of names of the model, and of those the number with its shape.
        others: labels of other models in the file that fit as well.
    """

    label: str
    state: dict[str, Tensor]
    constants: dict[str, Tensor]
    unused: list[str]
    intruders: list[str]
    complete: bool
    score: tuple[int, int]
    others: list[str] = field(default_factory=list)


def load_weights(
    model: PreprocessedModel, path: str | Path, key: str | None = None, *, new_head: bool = False
) -> list[str]:
    """Load a weights file into a model.

    Every entry of the model must be in the file with its shape. Entries of parts that the model does not have are
    ignored. Normalization constants and counters of BatchNorm may be missing.

    Args:
        key: which of several models in the file, by the key or prefix under which it lies.
        new_head: keep the model's own head if the file has none, or one for another number of classes.

    Returns:
        What the user should know: which of several models is used, what is ignored, other normalization constants.

    Raises:
        RequestError: as `read_state_dicts`; another number of classes; a missing entry, a wrong shape, or an entry
            inside a part that the model has.
    """
    match = match_weights(model, read_state_dicts(path), path, key)
    expected = model.state_dict()
    state = dict(match.state)
    for name in expected.keys() - state.keys():
        if _may_be_missing(name, expected[name]):
            state[name] = expected[name]
    if new_head:
        for name in ("head.weight", "head.bias"):
            if name in expected and (name not in state or len(state[name]) != len(expected[name])):
                state[name] = expected[name]
    _check_entries(expected, match, state, path)
    model.load_state_dict(state)
    notes = []
    if match.others:
        others = ", ".join(f"'{label}'" for label in match.others)
        chosen = match.label or "the top level"
        notes.append(
            f"weights '{path}' hold several models: '{chosen}' is used, not {others}; choose with --weights-key"
        )
    if match.unused:
        notes.append(f"ignored in weights '{path}', not part of the model: {_group_names(match.unused)}")
    warnings = (_normalization_warning(model, name, value, path) for name, value in match.constants.items())
    return notes + [warning for warning in warnings if warning is not None]


def match_weights(
    model: PreprocessedModel, dicts: list[StateDict], path: str | Path, key: str | None = None
) -> WeightsMatch:
    """Return the state dict of a file that fits a model best, under the model's names.

    Any prefix is stripped. Of several that fit, the first is chosen, and one that is not called ema, best or alike.

    Raises:
        RequestError: nothing in the file is called `key`.
    """
    target = _Target.of(model)
    matches = []
    for state in dicts:
        for prefix in _prefixes(state.tensors, len(target.required) / 2):
            label = f"{state.name}.{prefix}".strip(".")
            if key is None or key in (state.name, label) or key in label.split("."):
                matches.append(_match(target, state, prefix, label))
    if not matches:
        names = ", ".join(dict.fromkeys(f"'{state.name or next(iter(state.tensors))}'" for state in dicts))
        raise RequestError(f"weights '{path}' hold nothing called '{key}'; --weights-key takes one of {names}")
    fitting = sorted((match for match in matches if match.complete), key=lambda match: _is_second_choice(match.label))
    if not fitting:
        return max(matches, key=lambda match: (match.score, -len(match.label)))
    return replace(fitting[0], others=_other_models(fitting))


def infer_class_count(model: PreprocessedModel, match: WeightsMatch, num_classes: int) -> int:
    """Return the number of classes of a file's weights; `num_classes` if it cannot be inferred.

    The head is found by comparison with a model for `num_classes`: only its first dimension may differ.

    Args:
        model: the same architecture, for `num_classes`.
    """
    ours = {name: value.shape for name, value in model.state_dict().items() if name in match.state}
    heads = [name for name, shape in ours.items() if len(shape) and shape[0] == num_classes]
    counts = {
        match.state[name].shape[0]
        for name in heads
        if match.state[name].shape != ours[name] and match.state[name].shape[1:] == ours[name][1:]
    }
    return int(counts.pop()) if len(counts) == 1 else num_classes


@dataclass(frozen=True)
class _Target:
    """What a model expects of a file: shapes by name, which names are required, and the naming schemes of files."""

    shapes: dict[str, tuple[int, ...]]
    required: list[str]
    schemes: list[Callable[[str], str]]

    @classmethod
    def of(cls, model: PreprocessedModel) -> _Target:
        state = model.state_dict()
        required = [name for name, value in state.items() if not _may_be_missing(name, value)]
        inner = {name.removeprefix("net."): value for name, value in state.items()}
        wrappers = [prefix for prefix in _prefixes(inner, len(required) / 2) if prefix]  # around the user's network
        schemes: list[Callable[[str], str]] = [str, model.map_key]
        schemes += [lambda key, prefix=prefix: f"net.{prefix}{key}" for prefix in wrappers]  # type: ignore[misc]
        return cls({name: tuple(value.shape) for name, value in state.items()}, required, schemes)


def _match(target: _Target, found: StateDict, prefix: str, label: str) -> WeightsMatch:
    """Match the entries below a prefix with a model, under the naming scheme that fits most of them."""
    inside = {key: key.removeprefix(prefix) for key in found.tensors if key.startswith(prefix)}
    outside = {key: key for key in found.tensors if key not in inside}
    if not {*inside.values()} & {*outside.values()}:  # one model in two parts, such as backbone.* and fc.*
        inside |= outside

    def score(names: Iterable[tuple[str, str]]) -> tuple[int, int]:
        known = [(key, name) for key, name in names if name in target.shapes]
        return len(known), sum(tuple(found.tensors[key].shape) == target.shapes[name] for key, name in known)

    renamed = [{key: scheme(short) for key, short in inside.items()} for scheme in target.schemes]
    names = max(renamed, key=lambda naming: score(naming.items()))
    state: dict[str, Tensor] = {}
    constants: dict[str, Tensor] = {}
    unused: list[str] = []
    for key, value in found.tensors.items():
        name = names.get(key)
        if _is_constant(key, value) and name not in target.shapes:  # may lack the prefix of the others
            name = next((scheme(key) for scheme in target.schemes if scheme(key) in target.shapes), None)
        if name in target.shapes:
            state[name] = value
        elif _is_constant(key, value):
            constants[key] = value
        elif key.rpartition(".")[2] not in BOOKKEEPING:
            unused.append(key)
    used = {inside[key].partition(".")[0] for key, name in names.items() if name in target.shapes}
    intruders = [key for key in unused if key in inside and inside[key].partition(".")[0] in used]
    fits = all(name in state and tuple(state[name].shape) == target.shapes[name] for name in target.required)
    return WeightsMatch(label, state, constants, unused, intruders, fits and not intruders, score(names.items()))


def _prefixes(tensors: Iterable[str], least: float) -> list[str]:
    """Return the dotted prefixes that at least `least` names share, shortest first; "" is one."""
    counts: Counter[str] = Counter()
    for key in tensors:
        parts = key.split(".")
        counts.update(".".join(parts[:n]) + "." for n in range(1, len(parts)))
    return ["", *sorted((prefix for prefix, count in counts.items() if count >= least), key=len)]


def _other_models(fitting: list[WeightsMatch]) -> list[str]:
    """Return the labels of the matches after the first whose tensors differ from all before them."""
    import torch

    different: list[WeightsMatch] = fitting[:1]
    for match in fitting[1:]:
        if not any(
            all(
                value is match.state[name] or torch.equal(value, match.state[name])
                for name, value in other.state.items()
            )
            for other in different
            if other.state.keys() == match.state.keys()
        ):
            different.append(match)
    return [match.label for match in different[1:]]


def _is_second_choice(label: str) -> bool:
    return not {*SECOND_CHOICE}.isdisjoint(re.split(r"[._-]", label.lower()))


def _is_constant(key: str, value: Tensor) -> bool:
    """Return whether an entry may be a mean or standard deviation of a normalization layer."""
    tail = key.rpartition(".")[2]
    return bool(MEAN_NAME.search(tail) or STD_NAME.search(tail)) and value.numel() <= 3


def _may_be_missing(name: str, value: Tensor) -> bool:
    """Return whether a file may lack an entry of a model: BatchNorm's counter, normalization constants."""
    return name.endswith("num_batches_tracked") or _is_constant(name, value)


def _group_names(keys: list[str]) -> str:
    """Shorten a list of names to their first parts: 'sub_block1.* (21), n_averaged'."""
    counts = Counter(key.partition(".")[0] + (".*" if "." in key else "") for key in keys)
    shown = [f"{part} ({count})" if part.endswith("*") else part for part, count in counts.items()]
    return ", ".join(shown[:MAX_NAMED]) + (f" and {len(shown) - MAX_NAMED} more" if len(shown) > MAX_NAMED else "")


def _check_entries(
    expected: dict[str, Tensor], match: WeightsMatch, state: dict[str, Tensor], path: str | Path
) -> None:
    """Raise RequestError unless a file's entries have the names and shapes of the model's."""
    advice = "give the --model, stem and image size they were trained with"
    missing = [name for name in expected if name not in state]
    if missing or match.intruders:
        first = f"'{missing[0]}' is missing" if missing else f"'{match.intruders[0]}' is unexpected"
        raise RequestError(
            f"weights '{path}' do not fit the model: {first} ({len(missing)} missing, {len(match.unused)} "
            f"unexpected of {len(expected)}); {advice}"
        )
    wrong = {name: (tuple(state[name].shape), tuple(value.shape)) for name, value in expected.items()}
    wrong = {name: (found, ours) for name, (found, ours) in wrong.items() if found != ours}
    heads = [(found[0], ours[0]) for found, ours in wrong.values() if found and ours and found[1:] == ours[1:]]
    if 0 < len(heads) == len(wrong) <= 2 and len(set(heads)) == 1:  # weight and bias of the head
        found_classes, classes = heads[0]
        raise RequestError(
            f"weights '{path}' have {found_classes} classes, the data set has {classes}; give weights or a data set "
            "that match"
        )
    for name, (found, ours) in wrong.items():
        raise RequestError(f"weights '{path}' do not fit the model: '{name}' has shape {found}, not {ours}; {advice}")


def _normalization_warning(model: PreprocessedModel, key: str, value: Tensor, path: str | Path) -> str | None:
    """Return a warning if a normalization constant of a file differs from the model's; else None."""
    ours = (model.mean if MEAN_NAME.search(key.rpartition(".")[2]) else model.std).flatten().cpu()
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
