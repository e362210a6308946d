"""Statistics of per-image outcomes: intervals, paired tests between trained models, spread over seeds.

A paired test compares two trained models on one set of images. A comparison of two *methods* needs several seeds of
each.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from robobench.results.records import EvaluationRecord

if TYPE_CHECKING:
    from torch import Tensor

Name = TypeVar("Name", bound=Hashable)
Column = tuple[str, str, float]  # attack (or WORST_CASE), norm, eps
Budget = tuple[str, str, str]  # attack, its budget, precision of its search
WORST_CASE = "worst"  # column of the worst case over the attacks of one (norm, eps)
CLEAN: Column = ("clean", "", 0.0)  # column of clean images


@dataclass(frozen=True)
class PerImageOutcomes:
    """Which images are classified correctly. One bit per image: a store may have 100,000 records of 10,000 images."""

    bits: int  # the first image is the highest bit
    size: int  # number of images

    @classmethod
    def parse(cls, text: str) -> PerImageOutcomes:
        """Read a string of '0' and '1'."""
        return cls(int(text or "0", 2), len(text))

    @property
    def values(self) -> tuple[bool, ...]:
        """One bool per image."""
        return tuple(c == "1" for c in f"{self.bits:0{self.size}b}"[: self.size])

    def __and__(self, other: PerImageOutcomes) -> PerImageOutcomes:
        """Worst case of two attacks on the same images."""
        return PerImageOutcomes(self.bits & other.bits, self._common_size(other))

    @property
    def count(self) -> int:
        """Number of correct images."""
        return self.bits.bit_count()

    @property
    def accuracy(self) -> float:
        """Fraction of correct images."""
        return self.count / self.size

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the accuracy."""
        return wilson_interval(self.count, self.size)

    def count_lost_in(self, other: PerImageOutcomes) -> int:
        """Count the images that are correct here and wrong in `other`."""
        self._common_size(other)
        return (self.bits & ~other.bits).bit_count()

    def _common_size(self, other: PerImageOutcomes) -> int:
        if self.size != other.size:
            raise ValueError(f"outcomes of {self.size} and of {other.size} images cannot be combined")
        return self.size


ColumnOutcomes = dict[Column, PerImageOutcomes]


def to_bitstring(outcomes: Tensor) -> str:
    """Write outcomes (B,) bool as a string of '0' and '1'."""
    return "".join("1" if correct else "0" for correct in outcomes.tolist())


def wilson_interval(successes: int, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a fraction. Source: Wilson, JASA 22, 1927.

    Not scipy's: it takes 1.7 ms, and a table may have 10,000 rows. A test compares the two.
    """
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
    """Return the exact two-sided p-value of the hypothesis that two models are equally accurate on the same images.

    Args:
        only_first: number of images that only the first model classifies correctly.
        only_second: number of images that only the second classifies correctly.

    Source: McNemar, Psychometrika 12, 1947; exact form.
    """
    if only_first + only_second == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(only_first, only_first + only_second, 0.5).pvalue)


def holm(values: Sequence[float]) -> list[float]:
    """Return Holm-corrected p-values, in the given order.

    Source: Holm, Scandinavian Journal of Statistics 6, 1979: the i-th smallest of m is multiplied by m - i + 1, and is
    at least the one before.
    """
    out, highest = [0.0] * len(values), 0.0
    for rank, at in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        highest = max(highest, min(1.0, (len(values) - rank) * values[at]))
        out[at] = highest
    return out


def compact_letter_display(models: Mapping[Name, PerImageOutcomes], level: float = 0.05) -> dict[Name, str]:
    """Return the letters of each model's significance groups: models that share no letter differ significantly.

    Every pair is tested (exact McNemar), with Holm's correction over all pairs. The most robust model has an "a".

    Source: Piepho, Journal of Computational and Graphical Statistics 13, 2004 (insert and absorb).
    """
    order = sorted(models, key=lambda name: -models[name].count)
    tested = list(itertools.combinations(order, 2))
    raw = [mcnemar(models[a].count_lost_in(models[b]), models[b].count_lost_in(models[a])) for a, b in tested]
    groups = [frozenset(order)]  # sets of models of which no two differ
    for pair, p in zip(tested, holm(raw), strict=True):
        if p < level:
            split = [group - {removed} for group in groups if group.issuperset(pair) for removed in pair]
            groups = list(dict.fromkeys([group for group in groups if not group.issuperset(pair)] + split))
            groups = [group for group in groups if not any(group < other for other in groups)]
    groups.sort(key=lambda group: sorted(map(order.index, group)))
    return {name: "".join(chr(ord("a") + n) for n, group in enumerate(groups) if name in group) for name in models}


def outcomes_of(record: EvaluationRecord) -> PerImageOutcomes:
    """Return the outcomes under attack of a record with status "ok"."""
    assert record["robust_bits"] is not None
    return PerImageOutcomes.parse(record["robust_bits"])


def clean_outcomes_of(record: EvaluationRecord) -> PerImageOutcomes:
    """Return the clean outcomes of a record with status "ok"."""
    assert record["clean_bits"] is not None
    return PerImageOutcomes.parse(record["clean_bits"])


def failed_attacks(records: Iterable[EvaluationRecord]) -> dict[str, str]:
    """Return the attacks of one model at one threat that gave no result, with the reason.

    A failed attack that has a result with the same budget, such as one of an earlier run, is left out.
    """
    records = list(records)
    done = {(r["attack"], r["attack_budget"]) for r in records if r["status"] == "ok"}
    failed = [r for r in records if r["status"] != "ok" and (r["attack"], r["attack_budget"]) not in done]
    return {r["attack"]: r["reason"] for r in failed}


def combine_worst_case(records: Iterable[EvaluationRecord]) -> PerImageOutcomes | None:
    """Combine attacks on the same images: an image is robust only if it survives all.

    None if there are no records, or if an attack gave no result: without it the worst case is not known.
    """
    records = list(records)
    if failed_attacks(records):
        return None
    out: PerImageOutcomes | None = None
    for record in (r for r in records if r["status"] == "ok"):
        outcomes = outcomes_of(record)
        out = outcomes if out is None else out & outcomes
    return out


def _columns(records: Iterable[EvaluationRecord]) -> Iterator[tuple[Column, EvaluationRecord]]:
    """Iterate over one model's finished white-box records, each in its attack's column and in that of the worst case.

    There is no worst case at a threat where an attack gave no result.
    """
    at: dict[tuple[str, float], list[EvaluationRecord]] = {}
    for r in records:
        if r["protocol"] == "white-box":
            at.setdefault((r["threat_norm"], r["threat_eps"]), []).append(r)
    for threat, group in at.items():
        names = () if failed_attacks(group) else (WORST_CASE,)
        for r in group:
            if r["status"] == "ok":
                for name in (r["attack"], *names):
                    yield (name, *threat), r


def column_outcomes(records: Iterable[EvaluationRecord]) -> ColumnOutcomes:
    """Return one model's white-box outcomes, and their worst case per (norm, eps)."""
    out: ColumnOutcomes = {}
    for column, r in _columns(records):
        outcomes = outcomes_of(r)
        out[column] = out[column] & outcomes if column in out else outcomes
    return out


def attack_budgets(records: Iterable[EvaluationRecord]) -> dict[Column, frozenset[Budget]]:
    """Return the attacks and budgets behind each column of `column_outcomes`."""
    out: dict[Column, frozenset[Budget]] = {}
    for column, r in _columns(records):
        out[column] = out.get(column, frozenset()) | {(r["attack"], r["attack_budget"], r["search_precision"])}
    return out


def _group_by_name(records: Iterable[EvaluationRecord]) -> dict[tuple[str, int], list[EvaluationRecord]]:
    """Group the white-box records, failed ones too, by model name and seed, without baselines of another seed.

    The name is the defense. If both the last and the best epoch were attacked, the latter is "NAME, best epoch".
    "NAME'" is a training with other settings, the same for every seed, or a second training with the same settings.
    """
    white_box = [r for r in records if not r["is_control"] and r["protocol"] == "white-box"]
    evaluated = {(r["training"], r["weights_digest"]) for r in white_box if r["status"] == "ok"}
    shown = [r for r in white_box if (r["training"], r["weights_digest"]) in evaluated]
    both = len({r["selection"] for r in shown}) > 1
    settings: dict[str, list[str]] = {}
    found: dict[tuple[str, int, str, str, str | None], list[EvaluationRecord]] = {}
    for r in shown:
        mark = {"best": "best epoch", "last": ""}.get(r["selection"], r["selection"]) if both else ""
        name = f"{r['defense']}, {mark}" if mark else r["defense"]
        if r["config_digest"] not in settings.setdefault(name, []):
            settings[name].append(r["config_digest"])
        key = (name, r["seed"], r["config_digest"], r["training"], r["weights_digest"])
        found.setdefault(key, []).append(r)
    out: dict[tuple[str, int], list[EvaluationRecord]] = {}
    for (name, seed, setting, *_), group in found.items():
        label = name + "'" * settings[name].index(setting)
        while (label, seed) in out:
            label += "'"
        out[label, seed] = group
    return out


@dataclass(frozen=True)
class PairedDifference:
    """One trained model against the baseline under one attack, image by image."""

    column: Column
    model: str
    baseline: str
    only_model: int  # number of images that only this model classifies correctly
    only_baseline: int
    examples: int
    p: float  # Holm-corrected over the models of its column

    @property
    def difference(self) -> float:
        """Robust accuracy of the model minus that of the baseline, a fraction."""
        return (self.only_model - self.only_baseline) / self.examples


def paired_differences(
    records: Iterable[EvaluationRecord], baseline: str | Callable[[str], str | None]
) -> list[PairedDifference]:
    """Compare trained models with a baseline on the same images under the same attacks.

    Args:
        records: of models on the same images.
        baseline: a defense, or a model's name as in the result; or a function that returns it for a model's name, None
            for a model without one. Models are compared with the baseline of their seed.

    Returns:
        Differences by column. Only results of the same attacks with the same budgets are compared.
    """
    return grid_differences([records], baseline)[0]


def grid_differences(
    parts: Iterable[Iterable[EvaluationRecord]], baseline: str | Callable[[str], str | None]
) -> list[list[PairedDifference]]:
    """Compare trained models with their baseline, as `paired_differences` does, in every part of a grid.

    Args:
        parts: records of models on the same images each, such as those of one network.

    Returns:
        The differences of every part. p-values are Holm-corrected over all models of all parts at one column.
    """
    raw = [_raw_differences(records, baseline) for records in parts]
    columns: dict[Column, list[float]] = {}
    for pair in itertools.chain(*raw):
        columns.setdefault(pair.column, []).append(pair.p)
    corrected = {column: iter(holm(values)) for column, values in columns.items()}
    return [[replace(pair, p=next(corrected[pair.column])) for pair in part] for part in raw]


def _raw_differences(
    records: Iterable[EvaluationRecord], baseline: str | Callable[[str], str | None]
) -> list[PairedDifference]:
    """Return the differences with uncorrected p-values."""
    groups = _group_by_name(records)
    found = {model: column_outcomes(group) for model, group in groups.items()}
    budgets = {model: attack_budgets(group) for model, group in groups.items()}
    base = baseline if callable(baseline) else lambda name: None if name == baseline else baseline
    pairs = [(n, (base(n[0]), n[1])) for n in found]
    compared = [(one, (other, seed)) for one, (other, seed) in pairs if other is not None and (other, seed) in found]
    several = len({seed for _, seed in found}) > 1

    def label(model: tuple[str, int]) -> str:
        return f"{model[0]} (seed {model[1]})" if several else model[0]

    out: list[PairedDifference] = []
    columns = {column for model in found.values() for column in model}
    for column in sorted(columns, key=lambda c: (c[1] != "Linf", *c[1:], c[0] == WORST_CASE, c[0])):
        for one, other in compared:
            if column in budgets[one] and budgets[one][column] == budgets[other].get(column):
                mine, theirs = found[one][column], found[other][column]
                only = mine.count_lost_in(theirs), theirs.count_lost_in(mine)
                out.append(PairedDifference(column, label(one), label(other), *only, mine.size, mcnemar(*only)))
    return out


@dataclass(frozen=True)
class SeedStats:
    """Accuracies (fractions) of a method over several seeds."""

    column: Column
    defense: str
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return math.fsum(self.values) / len(self.values)

    @property
    def deviation(self) -> float:
        """Sample standard deviation over the seeds (n - 1)."""
        return math.sqrt(math.fsum((v - self.mean) ** 2 for v in self.values) / (len(self.values) - 1))


def seed_stats(records: Iterable[EvaluationRecord]) -> list[SeedStats]:
    """Return statistics of what at least two seeds have: clean accuracy, and each column with the same budgets."""
    found: dict[tuple[str, Column, frozenset[Budget]], list[float]] = {}
    for (defense, _), group in _group_by_name(records).items():
        found.setdefault((defense, CLEAN, frozenset()), []).append(
            clean_outcomes_of(next(r for r in group if r["status"] == "ok")).accuracy
        )
        budgets = attack_budgets(group)
        for column, outcomes in column_outcomes(group).items():
            found.setdefault((defense, column, budgets[column]), []).append(outcomes.accuracy)
    return [SeedStats(column, defense, tuple(v)) for (defense, column, _), v in found.items() if len(v) > 1]
