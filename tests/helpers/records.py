"""Evaluation records for tests of tables and checks."""

from __future__ import annotations

from typing import Any

from robobench.results.rows import COLUMNS


def evaluation_record(
    attack: str = "pgd",
    protocol: str = "white-box",
    robust: str = "0011",
    clean: str = "0111",
    eps: float = 0.1,
    **more: Any,
) -> Any:
    """Return the record of a finished cell: a cnn on digits, trained by `at`, with these outcomes per image."""
    record: dict[str, Any] = dict.fromkeys(COLUMNS)
    timing = {"train_seconds": 2.0, "total_train_seconds": 3.0, "flags": []}
    return record | {
        "attack": attack, "protocol": protocol, "threat_norm": "Linf", "threat_eps": eps, "seed": 0,
        "examples": len(clean), "clean_bits": clean, "robust_bits": robust, "status": "ok", "defense": "at",
        "dataset": "digits", "data_digest": "d", "model": "cnn", "preset": "quick", "attack_budget": "steps=20",
        "budget_reduced": False, "budget_standard": False, "search_precision": "fp32",
        "training": "at-1", "timing": timing, "is_control": False, **more,
    }  # fmt: skip
