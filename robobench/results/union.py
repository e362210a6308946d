"""Robust accuracy under the union of several threats, image by image, from stored outcomes.

An image counts if it is correct when clean and survives every attack at every threat. The mean or the minimum of the
accuracies at the single threats would be larger.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from robobench.core.formatting import format_eps
from robobench.core.numbers import canonical_norm, parse_eps
from robobench.errors import RequestError
from robobench.results.records import EvaluationRecord
from robobench.results.rows import group_by_model, worst_case
from robobench.results.statistics import PerImageOutcomes, clean_outcomes_of

if TYPE_CHECKING:
    import pandas as pd

Threat = tuple[str, float]  # norm and eps
WorstCases = dict[Threat, PerImageOutcomes]
# Of a record or row: one model on one set of images.
MODEL_AND_IMAGES = ["weights_digest", "precision", "data_digest", "examples"]
FACTS = ("dataset", "model", "defense", "seed", "selection", "examples")
VALUES = ("clean_accuracy", "union_accuracy", "ci_low", "ci_high", "attacks", "reason")


def parse_threats(text: str) -> list[Threat]:
    """Parse "Linf:8/255,L2:0.5,L1:12"; raises RequestError for fewer than two threats or a wrong one."""
    threats = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        norm, colon, eps = part.partition(":")
        if not colon:
            raise RequestError(f"union '{text}' is not NORM:EPS,NORM:EPS, such as Linf:8/255,L2:0.5,L1:12")
        threats.append((canonical_norm(norm), parse_eps(eps, canonical_norm(norm))))
    if len(set(threats)) < 2:
        raise RequestError(f"a union needs two threats or more, such as Linf:8/255,L2:0.5,L1:12, got '{text}'")
    return list(dict.fromkeys(threats))


def worst_cases_of(group: list[EvaluationRecord], among: Collection[Threat] | None = None) -> WorstCases:
    """Return the white-box worst case of one model at every threat, or at those of `among`, where it is known."""
    first: dict[Threat, EvaluationRecord] = {}
    for record in group:
        at = (record["threat_norm"], record["threat_eps"])
        if record["protocol"] == "white-box" and record["status"] == "ok" and (among is None or at in among):
            first.setdefault(at, record)
    found = {at: worst_case(group, record, "white-box") for at, record in first.items()}
    return {at: outcomes for at, outcomes in found.items() if outcomes is not None}


def worst_cases(records: list[EvaluationRecord]) -> dict[tuple[Any, ...], WorstCases]:
    """Return the white-box worst cases of every model; a model's key are its MODEL_AND_IMAGES."""
    out: dict[tuple[Any, ...], WorstCases] = {}
    for group in group_by_model(records).values():
        values: dict[str, Any] = dict(group[0])
        out.setdefault(tuple(values[name] for name in MODEL_AND_IMAGES), {}).update(worst_cases_of(group))
    return out


def one_threat_per_norm(threats: Iterable[Threat], first: Threat) -> tuple[Threat, ...]:
    """Return `first`, and the smallest radius of each other norm."""
    radii: dict[str, float] = {}
    for norm, eps in threats:
        radii[norm] = min(eps, radii.get(norm, eps))
    others = [(norm, eps) for norm, eps in radii.items() if norm != first[0]]
    return (first, *sorted(others, key=lambda threat: (threat[0] != "Linf", threat[0])))


def union_of(found: Mapping[Threat, PerImageOutcomes], threats: Iterable[Threat]) -> PerImageOutcomes | None:
    """Combine the worst cases at several threats: an image counts if it survives all. None if one has no result."""
    out: PerImageOutcomes | None = None
    for threat in threats:
        if threat not in found:
            return None
        out = found[threat] if out is None else out & found[threat]
    return out


def union_rows(records: list[EvaluationRecord], threats: list[Threat]) -> pd.DataFrame:
    """Return one row per model that was attacked at one of the threats, the most robust first.

    Returns:
        The columns FACTS, the worst case at each threat, and VALUES; accuracies are fractions over all images. Without
        a result at one of the threats there is no union, and `reason` says which is missing.

    Raises:
        RequestError: no model was attacked at any of the threats.
    """
    import pandas as pd

    names = [_format(*threat) for threat in threats]
    rows = []
    for group in group_by_model(records).values():
        worst = worst_cases_of(group, threats)
        if worst:
            rows.append(_row(group, worst, threats))
    if not rows:
        raise RequestError(f"no model was attacked at {', '.join(names)}; run evaluate or compare at these radii first")
    frame = pd.DataFrame(rows, columns=[*FACTS, *names, *VALUES])
    return frame.sort_values("union_accuracy", ascending=False, kind="stable", na_position="last", ignore_index=True)


def _format(norm: str, eps: float) -> str:
    return f"{norm} {format_eps(eps)}"


def _row(group: list[EvaluationRecord], worst: WorstCases, threats: list[Threat]) -> dict[str, Any]:
    values: dict[str, Any] = dict(group[0])
    done = [r for r in group if r["protocol"] == "white-box" and r["status"] == "ok"]
    used = {at: [r for r in done if (r["threat_norm"], r["threat_eps"]) == at] for at in threats}
    clean = clean_outcomes_of(next(r for at in worst for r in used[at]))
    row = {name: values[name] for name in FACTS} | {"clean_accuracy": clean.accuracy}
    row |= {_format(*at): worst[at].accuracy if at in worst else None for at in threats}
    attacks = {_format(*at): sorted({r["attack"] for r in records}) for at, records in used.items() if records}
    row["attacks"] = "; ".join(f"{name}: {','.join(names)}" for name, names in attacks.items())
    missing = [_format(*at) for at in threats if at not in worst]
    row["reason"] = f"no result at {', '.join(missing)}" if missing else ""
    union = union_of(worst, threats)
    if union is not None:
        union = clean & union
        row["union_accuracy"], (row["ci_low"], row["ci_high"]) = union.accuracy, union.interval
    return row
