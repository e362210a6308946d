"""Published numbers beside measured ones."""

from __future__ import annotations

import pandas as pd
import pytest

from robobench.paper import published
from robobench.paper.comparison import ComparisonRow, compare_record, format_rows
from robobench.paper.requests import Scale, group_of
from robobench.results.statistics import wilson_interval
from tests.helpers.paper import result_rows


def compare(found: pd.DataFrame, column: str) -> ComparisonRow:
    """Compare the number of MACD in a column of table 2 with result rows."""
    scale = Scale.load("quick")
    record = next(r for r in published.records("2") if r["defense"] == "MACD" and published.column_name(r) == column)
    group = group_of(record, scale)
    return compare_record(record, group, {group: found}, scale)


def test_row_has_accuracies_intervals_difference_and_flags():
    row = compare(result_rows(), "PGD 8/255")
    assert (row["accuracy"], row["ci_low"], row["ci_high"]) == (0.5, *wilson_interval(100, 200))
    assert (row["white_box_accuracy"], row["white_box_ci_high"]) == (0.01, wilson_interval(2, 200)[1])
    assert row["difference_points"] == pytest.approx(50 - 71.38)
    assert row["flags"] == "transfer-only"
    clean = compare(result_rows(), "clean")
    assert clean["accuracy"] == 0.9 and clean["difference_points"] == pytest.approx(90 - 93.74)
    text = format_rows([row]).iloc[0]
    assert (text["paper"], text["ours [95 % CI]"], text["difference"]) == ("71.38", "50.0 [43.1, 56.9]", "-21.4")


def test_failed_cell_is_empty_with_reason():
    row = compare(result_rows(status="failed", reason="out of memory", robust_accuracy=float("nan")), "PGD 8/255")
    assert row["white_box_accuracy"] is None and row["reason"] == "out of memory"
    missing = compare(result_rows(), "PGD 16/255")
    assert missing["accuracy"] is None and missing["difference_points"] is None and missing["reason"] == "not run"
    assert format_rows([missing]).iloc[0]["ours [95 % CI]"] == "-"
