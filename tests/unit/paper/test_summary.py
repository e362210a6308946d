"""All tables in one: means, shared lines, and the measured tables of `leaderboards/`."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from robobench.cli import main
from robobench.paper import published, summary
from robobench.paper.comparison import compare_record
from robobench.paper.requests import Scale, group_of
from robobench.paper.times import TRAIN
from tests.helpers.paper import LEADERBOARDS, PAPER, result_rows

MEASURED = LEADERBOARDS / "macd-paper-digits"


def measured_rows() -> list[dict[str, Any]]:
    """Return MACD's rows of tables 2 and 3: 90 % clean, 10 to 80 % under transfer, half of that white-box."""
    scale, accuracy = Scale.load("quick"), dict[str, float]()
    out: list[dict[str, Any]] = []
    for r in (r for table in "23" for r in published.records(table) if r["defense"] == "MACD"):
        group, column = group_of(r, scale), published.column_name(r)
        attacked = r["attack"] != "none"
        if attacked:
            accuracy.setdefault(column, 0.1 * (1 + len(accuracy)))
        mine = {"accuracy": accuracy[column] if attacked else 0.9}
        mine["white_box_accuracy"] = accuracy[column] / 2 if attacked else None
        out.append({**compare_record(r, group, {group: result_rows()}, scale), **mine})
    return [*out, {"method": "MACD", "stage": TRAIN, "seconds": 12.34}]


def test_summary_has_one_line_per_model():
    (line,) = summary.summarize(measured_rows()).to_dict("records")
    attacked = [0.1 * n for n in range(1, 9)]
    assert (line["table"], line["row"], line["model"]) == ("2, 3", "MACD", "cnn")
    assert (line["paper clean"], line["clean"]) == ("93.7 / 77.4", "90.0")
    means = [
        sum(values) / len(values)
        for table in "23"
        if (values := [r["value"] for r in published.records(table) if r["defense"] == "MACD" and r["eps"]])
    ]
    assert line["paper robust"] == " / ".join(f"{mean:.1f}" for mean in means)
    assert line["transfer"] == f"{100 * sum(attacked) / 8:.1f}" and line["white-box"] == f"{50 * sum(attacked) / 8:.1f}"
    assert (line["train time (s)"], line["incl. teachers (s)"], line["flags"]) == ("12.3", "-", "transfer-only")


def test_mean_with_missing_cell_is_missing():
    rows = measured_rows()
    rows[3]["white_box_accuracy"] = None
    (line,) = summary.summarize(rows).to_dict("records")
    assert line["white-box"] == "-" and line["transfer"] != "-"


def test_other_files_are_refused(tmp_path, capsys):
    for text, message in (("", "cannot read"), ("{}", "--format json"), ('[{"value": 1}]', "--format json")):
        (tmp_path / "x.json").write_text(text)
        assert main(["paper", "summary", str(tmp_path / "x.json")]) == 2
        assert message in capsys.readouterr().err
    assert main(["paper", "summary", str(tmp_path / "none.json")]) == 2


@pytest.mark.skipif(not MEASURED.is_dir(), reason="the tables have not been measured")
def test_measured_tables_match_rows_and_page():
    rows = summary.read(MEASURED / "tables.json")
    assert {row["id"] for row in rows if row.get("id")} == {r["id"] for r in PAPER["records"]}
    found = pd.read_csv(MEASURED / "rows.csv")
    by_model = found.groupby(["model", "defense"])
    for row in rows:
        if not row.get("id"):
            continue
        mine = by_model.get_group((row["model"], row["defense"]))
        assert row["accuracy"] is not None, row["id"]
        clean = row["column"] == "clean"
        assert (mine["clean_accuracy" if clean else "robust_accuracy"] - row["accuracy"]).abs().min() < 1e-9
        assert clean or (mine["robust_accuracy"] - row["white_box_accuracy"]).abs().min() < 1e-9
    page = (LEADERBOARDS.parent / "docs" / "results.md").read_text()
    assert summary.one_table(rows, "md").split("\n\n")[1] in page
