from pathlib import Path

import pandas as pd

from robobench.report.method_summary import Threat, _format_flags, _format_union, _unions, short_summary
from robobench.results.statistics import PerImageOutcomes

BOARD = Path(__file__).parents[3] / "leaderboards" / "cifar10-jpeg-resnet20"


def test_short_summary_fits_a_readme():
    lines = [line for line in short_summary(BOARD).splitlines() if line.startswith("|")]
    assert len(lines) <= 2 + 9 and all(line.count(" | ") <= 7 for line in lines)
    assert lines[2].startswith("| at | 49.0 | 24.5 [19.1, 30.9] | a | ")


def test_flag_is_shown_with_threats_and_model_count():
    """A flag of all rows stands alone."""
    rows = pd.DataFrame(
        [
            {"examples": n, "threat_norm": "Linf", "threat_eps": e, "flags": f, "weights_digest": w}
            for n, e, f, w in (
                (200, 0.1, "slow,transfer-only", "one"),
                (1000, 0.1, "slow", "one"),
                (1000, 0.2, "slow,odd", "two"),
            )
        ]
    )
    threats = [Threat(200, "Linf", 0.1, "pgd", "pgd"), Threat(1000, "Linf", 0.1, "pgd", "pgd")]
    assert _format_flags(rows, threats) == (
        "odd (Linf 0.2, n = 1000; 1 of 2 models), slow, transfer-only (Linf 0.1, n = 200; 1 of 2 models)"
    )
    assert _format_flags(rows.assign(flags=None), threats) == "-"


def test_heading_is_the_threat():
    budget = "pgd (steps=20, relative_step=0.25)"
    assert Threat(200, "Linf", 8 / 255, budget, budget).heading == "pgd Linf 8/255 (n = 200)"
    assert Threat(200, "L2", 0.5, f"fgsm (fixed); {budget}", budget).heading == "2 attacks L2 0.5 (n = 200)"


def test_union_counts_images_that_survive_all_norms():
    """1 of 4 images survives both; a model without a result in L2 has no union."""
    threats = [Threat(4, "Linf", 0.1, "pgd", "pgd"), Threat(4, "L2", 1.0, "pgd", "pgd"), Threat(9, "L2", 1.0, "", "")]
    ((heading, same),) = _unions(threats).items()
    assert heading == "union of Linf 0.1 and L2 1 (n = 4): white-box" and same == threats[:2]
    row = {"weights_digest": "w", "precision": "fp32", "data_digest": "d", "examples": 4}
    linf, l2 = PerImageOutcomes.parse("1100"), PerImageOutcomes.parse("0110")
    found = {("w", "fp32", "d", 4): {("Linf", 0.1): linf, ("L2", 1.0): l2}}
    assert _format_union(pd.DataFrame([row]), same, found) == "25.0 [4.6, 69.9]"
    assert _format_union(pd.DataFrame([row]), same, {("w", "fp32", "d", 4): {("Linf", 0.1): linf}}) == "-"
