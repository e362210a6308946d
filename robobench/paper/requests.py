"""From a table of the paper to requests: which defense, network, radius and setting answers each number.

Everything is looked up in `runs.json`; a scale there says what stands in for what, and what is reduced.
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

TRAINED_ON = "Linf"  # every defense of the paper trains against this norm

TIMED = ("CIFAR-10", "ResNet50")  # 4.4 does not say on which network; the paper's ablations use this one


@dataclass(frozen=True)
class Scale:
    """How large the answer is: the preset, what stands in for data sets and networks, what is reduced."""

    name: str
    values: dict[str, Any]
    swapped: dict[str, str]  # data set -> the one at hand that stands in for it

    @classmethod
    def load(cls, name: str, data_dir: Path | None = None) -> Scale:
        """Look a scale up; where it allows a stand-in, a data set that is not at hand is replaced.

        Raises:
            RequestError: no such scale.
        """
        scales = published.answers()["scales"]
        if name not in scales:
            raise unknown_name("preset of the paper's tables", name, scales)
        stand_in: dict[str, str] = scales[name].get("stand_in", {})
        return cls(name, scales[name], {k: v for k, v in stand_in.items() if not at_hand(k, data_dir)})

    def dataset(self, printed: str) -> str:
        """Return robobench's name of the data set that answers for one of the paper's."""
        name: str = self.values["datasets"][printed]
        return self.swapped.get(name, name)

    def model(self, printed: str) -> str:
        """Return robobench's name of the network that answers for one of the paper's."""
        return str(self.values["models"][printed])

    def eps(self, printed: str) -> str:
        """Return the radius that answers for one of the paper's, as text."""
        return str(self.values["eps"][printed])

    def notes(self, places: Iterable[tuple[str, str]], topics: Iterable[str] = ()) -> list[str]:
        """Say what stands in for (data set, network) pairs, and what is reduced, in general and on some topics."""
        own = Scale(published.OWN_SCALE, published.answers()["scales"][published.OWN_SCALE], {})
        out = [
            f"{ours} stands in for {printed}"
            for dataset, model in places
            for printed, ours, literal in (
                (dataset, self.dataset(dataset), own.dataset(dataset)),
                (model, self.model(model), own.model(model)),
            )
            if ours != literal
        ]
        radii = {k: v for k, v in self.values["eps"].items() if k != v}
        out += [f"radius {name} stands in for {printed}" for printed, name in radii.items()]
        of: dict[str, list[str]] = self.values.get("notes_of", {})
        return [*dict.fromkeys(out), *self.values["notes"], *(note for topic in topics for note in of.get(topic, []))]


def at_hand(name: str, data_dir: Path | None) -> bool:
    """Say whether a data set can be read without a download."""
    try:
        load_dataset(name, data_dir=data_dir, need_train=True, download=False)
    except RequestError:
        return False
    return True


@dataclass(frozen=True)
class Group:
    """Networks that share a data set, an architecture and settings, and so their requests."""

    dataset: str  # as the paper names it
    model: str
    settings: tuple[str, ...]  # what an ablation changes, NAME.FIELD=VALUE


def settings(record: Record, scale: Scale) -> tuple[str, ...]:
    """Return what a number's network changes against the paper's own method: an ablation is config, not code."""
    answers = published.answers()
    changed = dict(answers["ablations"].get(record["defence"], {}))
    for field, name in answers["varied"].items():
        if field in record:
            value = str(record[field])
            changed[name] = scale.values.get("values", {}).get(field, {}).get(value, value)
    return tuple(f"{name}={value}" for name, value in changed.items())


def group_of(record: Record, scale: Scale) -> Group:
    """Return the group whose requests answer a number."""
    return Group(record["dataset"], record["model_corrected"], settings(record, scale))


def attacks_of(table: str) -> dict[str, list[str]]:
    """Return a table's attacks and radii as printed; where it states none, what robobench takes."""
    unstated = published.answers()["unstated"]
    out: dict[str, dict[str, None]] = {}
    for r in published.records(table):
        if r["attack"] != "none":
            out.setdefault(r["attack"], {})[r["eps"] or unstated["eps"]] = None
    return {attack: list(eps) for attack, eps in out.items()} or {unstated["attack"]: [unstated["eps"]]}


def requests(table: str, scale: Scale, base: ExperimentConfig) -> dict[Group, list[ExperimentConfig]]:
    """Resolve a table into requests: the paper's protocol with its own tool, and white-box with the reference attacks.

    Args:
        base: flags that hold for all of them (store, device, a user's `sets`, `examples`, `epochs`).

    Raises:
        RequestError: the base's `sets` name something that no request of this table uses.
    """
    answers = published.answers()
    defenses: dict[Group, dict[str, None]] = {}
    for r in published.records(table):
        defenses.setdefault(group_of(r, scale), {})[answers["defenses"][r["defence"]]] = None
    made = {
        group: [
            _request(group, tuple(defenses[group]), part, scale, base)
            for part in (*_transfer(table, scale), _white_box(table, scale))
        ]
        for group in defenses
    }
    used = {name for group in made.values() for request in group for name in _names(request)}
    for name in parse_sets(base.sets):
        if name not in used:
            raise unknown_name("name in --set", name, used)
    return made


def training_request(scale: Scale, base: ExperimentConfig) -> ExperimentConfig:
    """Return the request that trains every timed method of section 4.4 and attacks nothing."""
    answers = published.answers()
    chosen = tuple(answers["defenses"][name] for name in answers["times"])
    return _request(Group(*TIMED, ()), chosen, {"attacks": ()}, scale, base)


def method_request(scale: Scale, base: ExperimentConfig) -> ExperimentConfig:
    """Return the request that trains the paper's own method and attacks nothing."""
    name = published.answers()["defenses"][published.METHOD]
    return _request(Group(*TIMED, ()), (name,), {"attacks": ()}, scale, base)


def _transfer(table: str, scale: Scale) -> list[dict[str, Any]]:
    """Return the transfer part: a request a norm, since the paper's tool takes the norm from the request."""
    by_norm: dict[str, dict[str, list[str]]] = {}
    for attack, eps in attacks_of(table).items():
        by_norm.setdefault(published.answers()["attacks"][attack]["norm"], {})[attack] = eps
    return [
        {
            "protocol": "transfer",
            "norm": norm,
            "attacks": tuple(published.answers()["attacks"][attack]["transfer"] for attack in attacks),
            "eps": (_radii(attacks.values(), scale),),
        }
        for norm, attacks in by_norm.items()
    ]


def _white_box(table: str, scale: Scale) -> dict[str, Any]:
    """Return the white-box part; a radius of L2 is the number of the Linf radius, as in the paper."""
    attacks = {attack: published.answers()["attacks"][attack] for attack in attacks_of(table)}
    norms = dict.fromkeys(a["norm"] for a in attacks.values())
    radii = _radii(attacks_of(table).values(), scale)
    return {
        "protocol": "white-box",
        "norm": TRAINED_ON,
        "attacks": tuple(a["white-box"] for a in attacks.values()),
        "eps": tuple(f"{norm}:{radii}" for norm in norms),
    }


def _radii(lists: Iterable[list[str]], scale: Scale) -> str:
    return ",".join(dict.fromkeys(scale.eps(eps) for radii in lists for eps in radii))


def _request(
    group: Group, defenses: tuple[str, ...], part: dict[str, Any], scale: Scale, base: ExperimentConfig
) -> ExperimentConfig:
    """Lay a part over the base; settings are the scale's, then the user's, then the ablation's."""
    model, values = scale.model(group.model), scale.values
    request = replace(
        base,
        defenses=defenses,
        dataset=scale.dataset(group.dataset),
        model=model,
        preset=scale.name,
        train_norm=TRAINED_ON,
        examples=base.examples or values.get("examples"),
        epochs=base.epochs if base.epochs is not None else values.get("epochs", {}).get(model),
        **part,
    )
    fixed = (f"{name}={value}" for name, value in values.get("sets", {}).items())
    names = _names(request)
    undefended = published.answers()["defenses"][published.BASELINE]
    control = () if undefended in defenses else ("run.baseline_control=false",)
    wanted = [*control, *fixed, *base.sets]
    kept = tuple(text for text in wanted if text.partition("=")[0].rpartition(".")[0] in names)
    return replace(request, sets=(*kept, *group.settings))


def _names(request: ExperimentConfig) -> set[str]:
    """Return what `--set` may name in a request: its plug-ins, what they require, and the run itself."""
    return {"run", *(request.attacks or ()), *(name for defense in request.defenses for name in _closure(defense))}


@cache
def _closure(defense: str) -> frozenset[str]:
    """Return a defense and everything it requires."""
    below = (_closure(name) for name in load_defense(defense).requires.values())
    return frozenset({defense}).union(*below)
