"""The published tables: every number as printed, corrections and notes."""

from __future__ import annotations

import json

import pytest

from robobench.cli import main
from robobench.paper import published
from tests.helpers.paper import PAPER


def printed(capsys, *arguments: str) -> str:
    assert main(["paper", "table", *arguments]) == 0
    return capsys.readouterr().out


def test_all_401_numbers_are_printed(capsys):
    checked = 0
    for table in published.NUMBERED:
        expected = [r for r in PAPER["records"] if r["table"] == f"T{table}"]
        assert json.loads(printed(capsys, table, "--format", "json")) == expected
        lines = [
            [cell.strip() for cell in line[1:-1].split("|")]
            for line in printed(capsys, table, "--format", "md").splitlines()
            if line.startswith("|")
        ]
        head, cells = lines[0], {(line[0], c): text for line in lines[2:] for c, text in enumerate(line)}
        for r in expected:
            text = cells[published.row_name(r), head.index(published.column_name(r))]
            assert float(text.rstrip("*?")) == r["value"], r["id"]
            assert text.endswith(("*", "?")) == r["bold"]
            checked += 1
        shown = printed(capsys, table)
        assert all(f"{r['value']:.2f}" in shown for r in expected)
    assert checked == len(PAPER["records"]) == 401


def test_run_times_are_printed(capsys):
    values = {r["value"] for r in json.loads(printed(capsys, "times", "--format", "json"))}
    entries = PAPER["run_times"]["entries"]
    assert values == {e[k] for e in entries for k in ("passes", "minutes_per_pass", "total_printed") if e.get(k)}


@pytest.mark.parametrize("form", ["table", "md", "latex", "html"])
def test_exchanged_tables_and_wrong_bold_are_marked(capsys, form):
    assert "belongs to WideResNet50" in printed(capsys, "1", "--format", form)
    text = printed(capsys, "2", "--format", form)
    assert "belongs to ResNet50" in text
    assert "63.61?" in text and "71.62*" in text
    assert [published.wrongly_bold(t) for t in published.NUMBERED if t != "2"] == [()] * 8


def test_improvement_matches_recomputed_averages():
    claims = PAPER["average_improvement_claims"]["recomputed"]
    for table in ("1", "2", "3", "4"):
        assert published.improvement(table, published.OTHERS) == pytest.approx(
            claims["six_defenses"][f"T{table}"], abs=0.005
        )
        four = claims["four_defenses_AT_TRADES_IAD_RoCL"][f"T{table}"]
        assert published.improvement(table, published.AVERAGED) == pytest.approx(four, abs=0.005)


def test_eps_monotonicity_violations_are_listed():
    assert "MACD Jitter 72.38 -> 76.00" in published.eps_monotonicity_violations("2")
    assert sum(len(published.eps_monotonicity_violations(t)) for t in ("1", "2", "3", "4")) == 16
