"""Statistics of per-image outcomes: intervals, paired tests between trained networks, spread over seeds.

A paired test is about two trained networks on one set of images. What it says of two *methods* is nothing: that takes
several seeds of each.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

Name = TypeVar("Name", bound=Hashable)
Column = tuple[str, str, float]  # attack (or WORST), norm, eps
WORST = "worst"  # column of the worst case over the attacks of one (norm, eps)
CLEAN: Column = ("clean", "", 0.0)  # of images as they are
ROUNDED = ", bfloat16 search"  # what a budget says of a search in that precision


# --- bits ---------------------------------------------------------------------------------------


def pack(bits: Tensor) -> str:
    """Write bits as text, one '0' or '1' an image."""
    return "".join("1" if bit else "0" for bit in bits.tolist())


@dataclass(frozen=True)
class Bits:
    """Per-image outcomes read back from a record."""

    values: tuple[bool, ...]

    @classmethod
    def read(cls, text: str) -> Bits:
        """Read what `pack` wrote."""
        return cls(tuple(c == "1" for c in text))

    def __and__(self, other: Bits) -> Bits:
        """Worst case of two attacks on the same images."""
        return Bits(tuple(a and b for a, b in zip(self.values, other.values, strict=True)))

    @property
    def count(self) -> int:
        """Number of images that stay right."""
        return sum(self.values)

    @property
    def accuracy(self) -> float:
        """Fraction of images that stay right."""
        return self.count / len(self.values)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the accuracy."""
        return wilson(self.count, len(self.values))

    def without(self, other: Bits) -> int:
        """Count the images that are right here and wrong in `other`."""
        return sum(a and not b for a, b in zip(self.values, other.values, strict=True))


Outcomes = dict[Column, Bits]


# --- tests --------------------------------------------------------------------------------------


def wilson(successes: int, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a fraction. Source: Wilson, JASA 22, 1927."""
    if count == 0:
        return math.nan, math.nan
    z = 1.959964
    p, z2 = successes / count, z * z
    middle = (p + z2 / (2 * count)) / (1 + z2 / count)
    half = z / (1 + z2 / count) * math.sqrt(p * (1 - p) / count + z2 / (4 * count * count))
    low = 0.0 if successes == 0 else max(0.0, middle - half)
    high = 1.0 if successes == count else min(1.0, middle + half)
    return low, high


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the exact two-sided p-value that two networks err equally often on the same images.

    Args:
        only_first: images that only the first network gets right.
        only_second: images that only the second gets right. Images on which both agree say nothing.

    Source: McNemar, Psychometrika 12, 1947; exact form: twice the binomial tail at 1/2, at most 1.
    """
    count = only_first + only_second
    term = total = 1  # binomial(count, 0)
    for k in range(min(only_first, only_second)):
        term = term * (count - k) // (k + 1)
        total += term
    return min(1.0, 2 * total / (1 << count))


def holm(values: Sequence[float]) -> list[float]:
    """Return p-values corrected for testing all of them, in the order given.

    Source: Holm, Scandinavian Journal of Statistics 6, 1979: the i-th smallest of m is multiplied by m - i + 1, never
    below the one before.
    """
    out, highest = [0.0] * len(values), 0.0
    for rank, at in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        highest = max(highest, min(1.0, (len(values) - rank) * values[at]))
        out[at] = highest
    return out


def letters(networks: Mapping[Name, Bits], level: float = 0.05) -> dict[Name, str]:
    """Give networks on the same images letters, so that those that share none differ significantly.

    Every pair is tested (exact McNemar), Holm-corrected over all pairs. The most robust network has an "a".

    Source: Piepho, Journal of Computational and Graphical Statistics 13, 2004 (insert and absorb).
    """
    order = sorted(networks, key=lambda name: -networks[name].count)
    tested = list(itertools.combinations(order, 2))
    raw = [mcnemar(networks[a].without(networks[b]), networks[b].without(networks[a])) for a, b in tested]
    alike = [frozenset(order)]  # sets of networks of which no two differ
    for pair, p in zip(tested, holm(raw), strict=True):
        if p < level:
            cut = [found - {gone} for found in alike if found.issuperset(pair) for gone in pair]
            alike = list(dict.fromkeys([found for found in alike if not found.issuperset(pair)] + cut))
            alike = [found for found in alike if not any(found < other for other in alike)]
    alike.sort(key=lambda found: sorted(map(order.index, found)))
    return {name: "".join(chr(ord("a") + n) for n, found in enumerate(alike) if name in found) for name in networks}


# --- pairs of networks --------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """One trained network against the baseline under one attack, image by image."""

    column: Column
    network: str
    baseline: str
    only_network: int  # images that only this one gets right
    only_baseline: int
    examples: int
    p: float  # Holm-corrected over the networks of its column

    @property
    def difference(self) -> float:
        """Robust accuracy of the network minus that of the baseline, a fraction."""
        return (self.only_network - self.only_baseline) / self.examples


def _columns(records: Iterable[dict[str, Any]]) -> Iterator[tuple[Column, dict[str, Any]]]:
    """Walk white-box records with a figure, each in its attack's column and in that of the worst case."""
    for r in records:
        if r["protocol"] == "white-box" and r["status"] == "ok":
            for name in (r["attack"], WORST):
                yield (name, r["threat_norm"], r["threat_eps"]), r


def outcomes(records: Iterable[dict[str, Any]]) -> Outcomes:
    """Read one network's white-box outcomes, and their worst case per (norm, eps)."""
    out: Outcomes = {}
    for column, r in _columns(records):
        bits = Bits.read(r["robust_bits"])
        out[column] = out[column] & bits if column in out else bits
    return out


def efforts(records: Iterable[dict[str, Any]]) -> dict[Column, frozenset[tuple[str, str]]]:
    """Say what stands behind each column of `outcomes`: the attacks and how hard each tried."""
    out: dict[Column, frozenset[tuple[str, str]]] = {}
    for column, r in _columns(records):
        out[column] = out.get(column, frozenset()) | {(r["attack"], r["budget"])}
    return out


def _networks(records: Iterable[dict[str, Any]]) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """Gather the white-box records of every network by name and seed; controls take no part.

    A defense's name stands for its network. Where both epochs were attacked the best one is "NAME, best epoch", and
    "NAME'" is a training with other settings (the same ones for every seed), or a second one with the same.
    """
    shown = [r for r in records if r["status"] == "ok" and not r["control"] and r["protocol"] == "white-box"]
    both = len({r["selection"] for r in shown}) > 1
    settings: dict[str, list[str]] = {}
    found: dict[tuple[str, int, str, str, str], list[dict[str, Any]]] = {}
    for r in shown:
        name = f"{r['defense']}, best epoch" if both and r["selection"] == "best" else r["defense"]
        if r["config_digest"] not in settings.setdefault(name, []):
            settings[name].append(r["config_digest"])
        key = (name, r["seed"], r["config_digest"], r["training"], r["weights_digest"])
        found.setdefault(key, []).append(r)
    out: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for (name, seed, setting, *_), group in found.items():
        label = name + "'" * settings[name].index(setting)
        while (label, seed) in out:
            label += "'"
        out[label, seed] = group
    return out


def pairs(records: Iterable[dict[str, Any]], baseline: str) -> list[Pair]:
    """Compare trained networks with a baseline on the same images under the same attacks.

    Args:
        records: of networks on the same images.
        baseline: a defense, or a network's name as it comes back; its network of each seed is compared with the
            others of that seed.

    Returns:
        Pairs, column by column. Only what the same attacks with the same budgets found is compared.
    """
    groups = _networks(records)
    found = {network: outcomes(group) for network, group in groups.items()}
    tried = {network: efforts(group) for network, group in groups.items()}
    chosen = [(n, (baseline, n[1])) for n in found if n[0] != baseline and (baseline, n[1]) in found]
    several = len({seed for _, seed in found}) > 1

    def label(network: tuple[str, int]) -> str:
        return f"{network[0]} (seed {network[1]})" if several else network[0]

    out: list[Pair] = []
    columns = {column for network in found.values() for column in network}
    for column in sorted(columns, key=lambda c: (c[1] != "Linf", *c[1:], c[0] == WORST, c[0])):
        raw = []
        for one, other in chosen:
            if column in tried[one] and tried[one][column] == tried[other].get(column):
                mine, theirs = found[one][column], found[other][column]
                only = mine.without(theirs), theirs.without(mine)
                raw.append(Pair(column, label(one), label(other), *only, len(mine.values), mcnemar(*only)))
        out += [replace(pair, p=p) for pair, p in zip(raw, holm([pair.p for pair in raw]), strict=True)]
    return out


# --- several seeds ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spread:
    """A method over several seeds: mean and sample standard deviation of its accuracies, fractions."""

    column: Column
    defense: str
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return math.fsum(self.values) / len(self.values)

    @property
    def deviation(self) -> float:
        """Standard deviation over the seeds, with n - 1."""
        return math.sqrt(math.fsum((v - self.mean) ** 2 for v in self.values) / (len(self.values) - 1))


def spreads(records: Iterable[dict[str, Any]]) -> list[Spread]:
    """Gather what was measured on two seeds or more: clean, and each (attack, norm, eps) with the same budgets."""
    found: dict[tuple[str, Column, frozenset[tuple[str, str]]], list[float]] = {}
    for (defense, _), group in _networks(records).items():
        found.setdefault((defense, CLEAN, frozenset()), []).append(Bits.read(group[0]["clean_bits"]).accuracy)
        tried = efforts(group)
        for column, bits in outcomes(group).items():
            found.setdefault((defense, column, tried[column]), []).append(bits.accuracy)
    return [Spread(column, defense, tuple(v)) for (defense, column, _), v in found.items() if len(v) > 1]
