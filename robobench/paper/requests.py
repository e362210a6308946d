"""Requests that reproduce a table: which defense, model, radius and settings belong to each published number.

Everything comes from `runs.json`. Each of its scales defines substitutes and reductions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from robobench.core.registry import unknown_name
from robobench.data import load_dataset
from robobench.errors import RequestError
from robobench.paper import published
from robobench.paper.published import Record
from robobench.planning.parsing import parse_sets
from robobench.planning.request import ExperimentConfig
from robobench.plugins.discovery import load_defense

TRAIN_NORM = "Linf"  # every defense of the paper trains against this norm
TIMED = ("CIFAR-10", "ResNet50")  # section 4.4 does not name the model; the paper's ablations use this one


@dataclass(frozen=True)
class Scale:
    """How large the experiments are: a preset, substitutes for data sets and models, and reductions."""

    name: str
    values: dict[str, Any]  # the entry of runs.json
    substituted: dict[str, str]  # unavailable data set -> its substitute

    @classmethod
    def load(cls, name: str, data_dir: Path | None = None) -> Scale:
        """Return a scale. Where it allows a substitute, a data set that is not available is replaced.

        Raises:
            RequestError: unknown scale.
        """
        scales = published.mapping()["scales"]
        if name not in scales:
            raise unknown_name("preset of the paper's tables", name, scales)
        substitutes: dict[str, str] = scales[name].get("substitutes", {})
        return cls(name, scales[name], {k: v for k, v in substitutes.items() if not is_available(k, data_dir)})

    def dataset(self, printed: str) -> str:
        """Return robobench's data set for one of the paper's."""
        name: str = self.values["datasets"][printed]
        return self.substituted.get(name, name)

    def model(self, printed: str) -> str:
        """Return robobench's model name for one of the paper's models."""
        return str(self.values["models"][printed])

    def eps(self, printed: str) -> str:
        """Return the radius used for one of the paper's, as text."""
        return str(self.values["eps"][printed])

    def notes(self, places: Iterable[tuple[str, str]], topics: Iterable[str] = ()) -> list[str]:
        """Return notes on substitutes and reductions.

        Args:
            places: (data set, model) pairs as the paper names them.
            topics: tables and attacks whose notes are included.
        """
        full = Scale(published.FULL_SCALE, published.mapping()["scales"][published.FULL_SCALE], {})
        out = [
            f"{printed} is replaced by {ours}"
            for dataset, model in places
            for printed, ours, literal in (
                (dataset, self.dataset(dataset), full.dataset(dataset)),
                (model, self.model(model), full.model(model)),
            )
            if ours != literal
        ]
        radii = {k: v for k, v in self.values["eps"].items() if k != v}
        out += [f"radius {printed} is replaced by {ours}" for printed, ours in radii.items()]
        by_topic: dict[str, list[str]] = self.values.get("notes_of", {})
        return [*dict.fromkeys(out), *self.values["notes"], *(note for t in topics for note in by_topic.get(t, []))]


def is_available(name: str, data_dir: Path | None) -> bool:
    """Return whether a data set can be read without a download."""
    try:
        load_dataset(name, data_dir=data_dir, need_train=True, download=False)
    except RequestError:
        return False
    return True


@dataclass(frozen=True)
class Group:
    """Models that share data set, architecture and settings, and therefore requests."""

    dataset: str  # as the paper names it
    model: str  # as the paper names it
    settings: tuple[str, ...]  # what an ablation changes, NAME.FIELD=VALUE


def ablation_settings(record: Record, scale: Scale) -> tuple[str, ...]:
    """Return the settings of a number's model that differ from the paper's method, NAME.FIELD=VALUE."""
    mapping = published.mapping()
    changed = dict(mapping["ablations"].get(record["defense"], {}))
    for field, name in mapping["varied"].items():
        if field in record:
            value = str(record[field])
            changed[name] = scale.values.get("values", {}).get(field, {}).get(value, value)
    return tuple(f"{name}={value}" for name, value in changed.items())


def group_of(record: Record, scale: Scale) -> Group:
    """Return the group that a number belongs to."""
    return Group(record["dataset"], record["model_corrected"], ablation_settings(record, scale))


def attacks_of(table: str) -> dict[str, list[str]]:
    """Return a table's attacks and their radii as printed, or robobench's choice where the table states none."""
    unstated = published.mapping()["unstated"]
    out: dict[str, dict[str, None]] = {}
    for r in published.records(table):
        if r["attack"] != "none":
            out.setdefault(r["attack"], {})[r["eps"] or unstated["eps"]] = None
    return {attack: list(eps) for attack, eps in out.items()} or {unstated["attack"]: [unstated["eps"]]}


def table_requests(table: str, scale: Scale, base: ExperimentConfig) -> dict[Group, list[ExperimentConfig]]:
    """Return the requests of a table: transfer with the paper's attack library, white-box with the reference attacks.

    Args:
        base: flags that hold for all requests (store, device, a user's `sets`, `examples`, `epochs`).

    Raises:
        RequestError: `sets` of the base name something that no request of this table uses.
    """
    mapping = published.mapping()
    defenses: dict[Group, dict[str, None]] = {}
    for r in published.records(table):
        defenses.setdefault(group_of(r, scale), {})[mapping["defenses"][r["defense"]]] = None
    by_group = {
        group: [
            _request(group, tuple(defenses[group]), part, scale, base)
            for part in (*_transfer_parts(table, scale), _white_box_part(table, scale))
        ]
        for group in defenses
    }
    used = {name for requests in by_group.values() for request in requests for name in _settable_names(request)}
    for name in parse_sets(base.sets):
        if name not in used:
            raise unknown_name("name in --set", name, used)
    return by_group


def timing_request(scale: Scale, base: ExperimentConfig) -> ExperimentConfig:
    """Return the request that trains every timed method of section 4.4, without attacks."""
    mapping = published.mapping()
    chosen = tuple(mapping["defenses"][name] for name in mapping["times"])
    return _request(Group(*TIMED, ()), chosen, {"attacks": ()}, scale, base)


def method_request(scale: Scale, base: ExperimentConfig) -> ExperimentConfig:
    """Return the request that trains the paper's method, without attacks."""
    name = published.mapping()["defenses"][published.METHOD]
    return _request(Group(*TIMED, ()), (name,), {"attacks": ()}, scale, base)


def _transfer_parts(table: str, scale: Scale) -> list[dict[str, Any]]:
    """Return the transfer fields of the requests, one request per norm.

    The library's attacks take the norm from the request.
    """
    by_norm: dict[str, dict[str, list[str]]] = {}
    for attack, eps in attacks_of(table).items():
        by_norm.setdefault(published.mapping()["attacks"][attack]["norm"], {})[attack] = eps
    return [
        {
            "protocol": "transfer",
            "norm": norm,
            "attacks": tuple(published.mapping()["attacks"][attack]["transfer"] for attack in attacks),
            "eps": (_radii(attacks.values(), scale),),
        }
        for norm, attacks in by_norm.items()
    ]


def _white_box_part(table: str, scale: Scale) -> dict[str, Any]:
    """Return the white-box fields of a request. L2 radii equal the Linf radii in number, as in the paper."""
    attacks = {attack: published.mapping()["attacks"][attack] for attack in attacks_of(table)}
    norms = dict.fromkeys(a["norm"] for a in attacks.values())
    radii = _radii(attacks_of(table).values(), scale)
    return {
        "protocol": "white-box",
        "norm": TRAIN_NORM,
        "attacks": tuple(a["white-box"] for a in attacks.values()),
        "eps": tuple(f"{norm}:{radii}" for norm in norms),
    }


def _radii(lists: Iterable[list[str]], scale: Scale) -> str:
    return ",".join(dict.fromkeys(scale.eps(eps) for radii in lists for eps in radii))


def _request(
    group: Group, defenses: tuple[str, ...], part: dict[str, Any], scale: Scale, base: ExperimentConfig
) -> ExperimentConfig:
    """Return `base` with the fields of `part`; settings of the scale, the user and the ablation apply in this order."""
    model, values = scale.model(group.model), scale.values
    request = replace(
        base,
        defenses=defenses,
        dataset=scale.dataset(group.dataset),
        model=model,
        preset=scale.name,
        train_norm=TRAIN_NORM,
        examples=base.examples or values.get("examples"),
        epochs=base.epochs if base.epochs is not None else values.get("epochs", {}).get(model),
        **part,
    )
    fixed = (f"{name}={value}" for name, value in values.get("sets", {}).items())
    names = _settable_names(request)
    undefended = published.mapping()["defenses"][published.BASELINE]
    control = () if undefended in defenses else ("run.baseline_control=false",)
    wanted = [*control, *fixed, *base.sets]
    kept = tuple(text for text in wanted if text.partition("=")[0].rpartition(".")[0] in names)
    return replace(request, sets=(*kept, *group.settings))


def _settable_names(request: ExperimentConfig) -> set[str]:
    """Return the names that `--set` may use in a request: run, its attacks, its defenses and what they require."""
    required = (name for defense in request.defenses for name in _with_requirements(defense))
    return {"run", *(request.attacks or ()), *required}


@cache
def _with_requirements(defense: str) -> frozenset[str]:
    """Return a defense and all defenses it requires."""
    required = (_with_requirements(name) for name in load_defense(defense).requires.values())
    return frozenset({defense}).union(*required)
