"""The MACD paper's data as the tests read it, and made-up result rows for one of its cells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

LEADERBOARDS = Path(__file__).parents[2] / "leaderboards"
PAPER = json.loads((LEADERBOARDS / "published/macd-paper/tables.json").read_text())


def result_rows(**changes: Any) -> pd.DataFrame:
    """Return MACD under PGD at 0.05, transfer (50 %) and white-box (1 %); `changes` apply to the white-box row."""
    common = {
        "defense": "macd",
        "is_control": False,
        "seed": 0,
        "examples": 200,
        "clean_accuracy": 0.9,
        "robust_accuracy": 0.5,
        "threat_eps": 0.05,
        "status": "ok",
        "reason": "",
        "flags": "transfer-only",
    }
    transfer = {**common, "attack": "torchattacks-pgd", "protocol": "transfer"}
    white_box = {**common, "attack": "pgd", "protocol": "white-box", "robust_accuracy": 0.01}
    return pd.DataFrame([transfer, {**white_box, **changes}])
