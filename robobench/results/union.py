"""Robust accuracy under the union of several threats, image by image, from stored outcomes.

An image counts if it is correct when clean and survives every attack at every threat. The mean or the minimum of the
accuracies at the single threats would be larger.
"""

from __future__ import annotations

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
        done = [r for r in group if r["protocol"] == "white-box" and r["status"] == "ok"]
        first = {at: next((r for r in done if (r["threat_norm"], r["threat_eps"]) == at), None) for at in threats}
        worst = [None if r is None else worst_case(group, r, "white-box") for r in first.values()]
        if any(found is not None for found in worst):
            rows.append(_row(group, done, dict(zip(names, worst, strict=True)), set(threats)))
    if not rows:
        raise RequestError(f"no model was attacked at {', '.join(names)}; run evaluate or compare at these radii first")
    frame = pd.DataFrame(rows, columns=[*FACTS, *names, *VALUES])
    return frame.sort_values("union_accuracy", ascending=False, kind="stable", na_position="last", ignore_index=True)


def _format(norm: str, eps: float) -> str:
    return f"{norm} {format_eps(eps)}"


def _row(
    group: list[EvaluationRecord],
    done: list[EvaluationRecord],
    worst: dict[str, PerImageOutcomes | None],
    threats: set[Threat],
) -> dict[str, Any]:
    values: dict[str, Any] = dict(group[0])
    used = [r for r in done if (r["threat_norm"], r["threat_eps"]) in threats]
    row = {name: values[name] for name in FACTS} | {"clean_accuracy": clean_outcomes_of(used[0]).accuracy}
    row |= {name: None if outcomes is None else outcomes.accuracy for name, outcomes in worst.items()}
    at = {
        name: sorted({r["attack"] for r in used if _format(r["threat_norm"], r["threat_eps"]) == name})
        for name in worst
    }
    row["attacks"] = "; ".join(f"{name}: {','.join(attacks)}" for name, attacks in at.items() if attacks)
    missing = [name for name, outcomes in worst.items() if outcomes is None]
    row["reason"] = f"no result at {', '.join(missing)}" if missing else ""
    if not missing:
        union = clean_outcomes_of(used[0])
        for outcomes in worst.values():
            assert outcomes is not None
            union = union & outcomes
        row["union_accuracy"], (row["ci_low"], row["ci_high"]) = union.accuracy, union.interval
    return row
