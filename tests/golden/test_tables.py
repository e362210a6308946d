"""Rendered tables of hand-written rows, compared with a file beside this one.

After an intended change, rewrite the file: UPDATE_GOLDEN=1 pytest tests/golden/test_tables.py
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import pandas as pd
from rich.console import Console

from robobench.report.leaderboard import rank_models, split_leaderboards
from robobench.report.leaderboard_formats import leaderboard, render_leaderboard
from robobench.report.matrix import print_matrices
from tests.helpers.rows import make_table_rows

MODELS = {"trades": 0.482, "at": 0.47, "fast-at": 0.41, "standard": 0.0}


def make_rows() -> pd.DataFrame:
    """Return rows with a control, a flag, a reduced budget, costs with and without teachers, and a failed cell."""
    rows = make_table_rows(
        MODELS, ("fgsm", "pgd"), (("Linf", 0.1), ("L2", 1.0)), count=200, passes="train 2 x (1 F + 1 Gw)"
    )
    rows[["ci_low", "worst_case_ci_low"]] = rows[["ci_low", "worst_case_ci_low"]].clip(lower=0)
    rows.loc[rows["defense"] == "standard", ["is_control", "seed", "flags"]] = [True, 1, "transfer-only"]
    rows.loc[rows["defense"] == "fast-at", "flags"] = "catastrophic-overfitting"
    rows["train_cpu_seconds"], rows["total_train_cpu_seconds"] = 9.5, 1234.5
    rows["total_train_forwards"], rows["warmup_seconds"], rows["peak_memory_bytes"] = 1.25e6, 0.8, 3 * 2**28
    pgd = rows["attack"] == "pgd"
    rows.loc[pgd & (rows["threat_norm"] == "L2"), ["attack_budget", "budget_reduced"]] = ["reduced: 5 steps", True]
    failed = pgd & (rows["defense"] == "at") & (rows["protocol"] == "transfer") & (rows["threat_norm"] == "Linf")
    rows.loc[failed, ["status", "reason", "robust_accuracy"]] = ["failed", "RuntimeError: no memory", None]
    return rows


def render() -> str:
    """Render the rows as matrices of 80 columns, and as leaderboards of 80 and 160 columns and in Markdown."""
    rows = make_rows()
    out = io.StringIO()
    print_matrices(rows, Console(file=out, width=80))
    for width in (80, 160):
        console = Console(file=out, width=width)
        for title, lines in split_leaderboards(rank_models(rows)):
            console.print(render_leaderboard(title, lines, None, console))
            console.print()
    out.write(leaderboard(rows, "md"))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def test_rendered_tables_are_unchanged():
    text, file = render(), Path(__file__).parent / "tables.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        file.write_text(text)
    assert text == file.read_text()
