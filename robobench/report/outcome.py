"""What an evaluation says in words and in JSON, and whether a gate of continuous integration passes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import pandas as pd

from robobench.core.formatting import format_eps
from robobench.errors import RequestError
from robobench.report.formatting import format_threat, iter_groups, list_flags, named_models
from robobench.store.artifacts import write_atomic

GATE_FORM = "ACCURACY@NORM:EPS, such as 0.30@Linf:8/255"


def outcome_sentences(rows: pd.DataFrame) -> list[str]:
    """Say for every norm and radius how many images one model classifies correctly, clean and under all attacks.

    Args:
        rows: of one model on the same images.
    """
    out = []
    done = rows[(rows["status"] == "ok") & (rows["protocol"] == "white-box")]
    for part in iter_groups(done, ["threat_norm", "threat_eps"]):
        first = part.iloc[0]
        count = int(first["examples"])
        if pd.isna(first["worst_case_accuracy"]):  # an attack failed
            continue
        clean, robust = (round(count * first[name]) for name in ("clean_accuracy", "worst_case_accuracy"))
        out.append(
            f"Of {count} images {clean} are classified correctly, {robust} still after changes of at most "
            f"{format_eps(first['threat_eps'])} ({first['threat_norm']}; {first['worst_case_attacks']})."
        )
    return out


@dataclass(frozen=True)
class Gate:
    """The white-box worst case that a model must reach at one norm and radius."""

    accuracy: float  # a fraction
    norm: str
    eps: float

    @classmethod
    def parse(cls, text: str) -> Gate:
        """Parse '0.30@Linf:8/255'; raises RequestError."""
        from robobench.core.numbers import canonical_norm, parse_eps

        accuracy, at, threat = text.partition("@")
        norm, colon, eps = threat.partition(":")
        try:
            value = float(Fraction(accuracy))
        except (ValueError, ZeroDivisionError):
            value = -1.0
        if not at or not colon or not 0 <= value <= 1:
            raise RequestError(f"--fail-under '{text}' is not {GATE_FORM}; the accuracy is a fraction between 0 and 1")
        norm = canonical_norm(norm)
        return cls(value, norm, parse_eps(eps, norm))

    def is_at(self, norm: str, eps: float) -> bool:
        """Return whether the gate belongs to a norm and radius."""
        return norm == self.norm and abs(eps - self.eps) < 1e-9

    def failure(self, rows: pd.DataFrame) -> str | None:
        """Return why the rows of one model miss the gate; None if they pass."""
        here = [self.is_at(norm, eps) for norm, eps in zip(rows["threat_norm"], rows["threat_eps"], strict=True)]
        at = rows[pd.Series(here, index=rows.index, dtype=bool) & (rows["protocol"] == "white-box")]
        threat = format_threat(self.norm, self.eps)
        failed = at[at["status"] != "ok"]
        if len(failed) or at.empty:
            why = f"{failed.iloc[0]['attack']}: {failed.iloc[0]['reason']}" if len(failed) else "not attacked"
            return f"gate missed: no complete result at {threat} ({why})"
        first = at.iloc[0]
        if first["worst_case_accuracy"] >= self.accuracy:
            return None
        return (
            f"gate missed: worst case {first['worst_case_accuracy']:.4f} at {threat} is below {self.accuracy:g} "
            f"(95 % CI {first['worst_case_ci_low']:.4f} to {first['worst_case_ci_high']:.4f}, "
            f"{int(first['examples'])} images)"
        )


def evaluation_summary(rows: pd.DataFrame) -> dict[str, Any]:
    """Return the results of one run as plain values for JSON; eps as text, accuracies as fractions."""
    models = []
    for name, part in named_models(rows):
        first = part.iloc[0]
        cells = [
            {
                "attack": r["attack"],
                "attack_budget": r["attack_budget"],
                "norm": r["threat_norm"],
                "eps": format_eps(r["threat_eps"]),
                "protocol": r["protocol"],
                "status": r["status"],
                "reason": r["reason"] or "",
                "robust_accuracy": _plain(r["robust_accuracy"]),
                "interval": [_plain(r["ci_low"]), _plain(r["ci_high"])],
            }
            for r in part.to_dict("records")
        ]
        done = part[part["status"] == "ok"]
        worst = [
            {
                "norm": group.iloc[0]["threat_norm"],
                "eps": format_eps(group.iloc[0]["threat_eps"]),
                "protocol": group.iloc[0]["protocol"],
                "attacks": group.iloc[0]["worst_case_attacks"].split(","),
                "accuracy": _plain(group.iloc[0]["worst_case_accuracy"]),
                "interval": [_plain(group.iloc[0][f"worst_case_ci_{end}"]) for end in ("low", "high")],
            }
            for group in iter_groups(done, ["threat_norm", "threat_eps", "protocol"])
        ]
        models.append(
            {
                "name": name,
                "model": first["model"],
                "weights_digest": first["weights_digest"],
                "clean_accuracy": _plain(part["clean_accuracy"].astype(float).max()),
                "flags": list_flags(part),
                "worst_case": worst,
                "cells": cells,
            }
        )
    first = rows.iloc[0]
    facts = {name: _plain(first[name]) for name in ("dataset", "data_digest", "examples", "hardware", "torch_version")}
    return {**facts, "models": models}


def _plain(value: Any) -> Any:
    """Return a value of plain Python; None for NaN."""
    return None if pd.isna(value) else value.item() if hasattr(value, "item") else value


def write_evaluation(rows: pd.DataFrame, file: Path) -> None:
    """Write `evaluation_summary` as JSON, atomically."""
    write_atomic(file, json.dumps(evaluation_summary(rows), indent=1) + "\n")
