"""Rows of tables, written by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from robobench.results.rows import COLUMNS

ATTACKS = ("fgsm", "pgd", "jitter", "a-rather-long-attack")
THREATS = (("Linf", 0.05), ("Linf", 0.1))
MODELS = {"first": 0.50, "inside": 0.485, "outside": 0.475}  # the first two are inside the first one's 95 % CI


def make_table_rows(
    models: Mapping[str, float],
    attacks: Sequence[str] = ("pgd",),
    threats: Sequence[tuple[str, float]] = THREATS,
    count: int = 400,
    **more: Any,
) -> pd.DataFrame:
    """Return the rows of models {name: worst white-box accuracy}.

    Transfer accuracy is 0.1 higher, clean accuracy 0.95, intervals are +- 0.02. `more` sets further columns.
    """
    out = []
    for number, (name, worst) in enumerate(models.items()):
        for norm, eps in threats:
            for protocol, value in (("white-box", worst), ("transfer", worst + 0.1)):
                for nth, attack in enumerate(attacks):
                    out.append(
                        {
                            **dict.fromkeys(COLUMNS), "dataset": "digits", "data_digest": "d", "model": "cnn",
                            "preset": "quick", "defense": name, "seed": 0, "config_digest": name, "is_control": False,
                            "weights_digest": f"w{number}", "precision": "fp32", "threads": 1, "examples": count,
                            "attack": attack, "attack_budget": "steps=20", "budget_reduced": False,
                            "budget_standard": False, "search_precision": "fp32", "protocol": protocol,
                            "threat_norm": norm, "threat_eps": eps, "clean_accuracy": 0.95,
                            "robust_accuracy": value + 0.01 * nth, "ci_low": value - 0.02, "ci_high": value + 0.02,
                            "worst_case_accuracy": value, "worst_case_ci_low": value - 0.02,
                            "worst_case_ci_high": value + 0.02, "worst_case_attacks": ",".join(sorted(attacks)),
                            "train_seconds": 10.0 * (number + 1), "total_train_seconds": 12.0 * (number + 1),
                            "train_forwards": 5e4, "status": "ok", **more,
                        }
                    )  # fmt: skip
    return pd.DataFrame(out, columns=COLUMNS)
