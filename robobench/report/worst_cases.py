"""Worst cases of every model image by image, and their union over threats, for tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from robobench.results.records import EvaluationRecord
from robobench.results.rows import group_by_model, worst_case
from robobench.results.statistics import PerImageOutcomes

MODEL_AND_IMAGES = [
    "weights_digest",
    "precision",
    "data_digest",
    "examples",
]  # of a row: one model on one set of images
Threat = tuple[str, float]  # norm and eps
WorstCases = dict[Threat, PerImageOutcomes]


def worst_cases(records: list[EvaluationRecord]) -> dict[tuple[Any, ...], WorstCases]:
    """Return the white-box worst case of every model at every threat; a model's key are its MODEL_AND_IMAGES."""
    out: dict[tuple[Any, ...], WorstCases] = {}
    for group in group_by_model(records).values():
        for record in group:
            if record["protocol"] == "white-box" and record["status"] == "ok":
                values: dict[str, Any] = dict(record)
                found = worst_case(group, record, "white-box")
                if found is not None:
                    at = out.setdefault(tuple(values[name] for name in MODEL_AND_IMAGES), {})
                    at[record["threat_norm"], record["threat_eps"]] = found
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
