"""Comparison of all models with a baseline, by hand-worked values."""

import json

import pytest

from robobench.errors import RequestError
from robobench.report.board_readme import update_tables
from robobench.report.gains import format_gains, gain_lines, gain_statements, gains
from tests.helpers.boards import BOARD
from tests.helpers.records import evaluation_record

IMAGES = 20
SECONDS = {"at": 4.0, "trades": 6.0, "fast-at": 1.0}
ROBUST = {  # number of robust images, the first ones: last, averaged weights
    ("at", "last"): 5, ("at", "average"): 6,
    ("trades", "last"): 15, ("trades", "average"): 7,
    ("fast-at", "last"): 0, ("fast-at", "average"): 6,
}  # fmt: skip


def records(**more):
    return [
        evaluation_record(
            robust="1" * count + "0" * (IMAGES - count), clean="1" * IMAGES, defense=defense, selection=selection,
            training=defense, config_digest=defense, weights_digest=f"{defense}-{selection}", precision="fp32",
            timing={"total_train_seconds": SECONDS[defense], "total_train_forwards": None, "flags": []}, **more,
        )
        for (defense, selection), count in ROBUST.items()
    ]  # fmt: skip


def test_gains_pair_the_same_weights():
    """trades keeps 10 images that at loses: p = 2 / 2^10, times 4 comparisons. fast-at loses 5: 2 / 2^5, times 3."""
    lines = gain_lines(records(), "at").set_index(["defense", "selection"])
    assert lines["gain"].round(6).dropna().to_dict() == {
        ("trades", "last"): 0.5, ("trades", "average"): 0.05, ("fast-at", "average"): 0.0, ("fast-at", "last"): -0.25,
    }  # fmt: skip
    assert lines.loc[("trades", "last"), "p"] == pytest.approx(4 * 2 / 2**10)
    assert lines.loc[("fast-at", "last"), "p"] == pytest.approx(3 * 2 / 2**5)
    assert lines.loc[("trades", "average"), "p"] == lines.loc[("fast-at", "average"), "p"] == 1
    assert lines["total_train_seconds_ratio"].groupby("defense").first().to_dict() == {
        "at": 1.0, "trades": 1.5, "fast-at": 0.25,
    }  # fmt: skip
    assert lines["total_train_forwards_ratio"].isna().all()


def test_kinds_of_weights_stand_side_by_side():
    lines = gain_lines(records(), "at")
    table = format_gains(lines, "at").set_index("defense")
    assert table.loc["trades"].to_dict() == {
        "clean, last": "100.0", "clean, average": "100.0", "worst, last": "75.0", "worst, average": "35.0",
        "gain over at, last": "+50.0 (0.0078)", "gain over at, average": "+5.0 (1)", "time / at": "1.50",
    }  # fmt: skip
    assert gain_statements(lines, "at") == [
        "last: more robust than at: trades; less robust: none; undecided (p >= 0.05): fast-at",
        "average: more robust than at: none; less robust: none; undecided (p >= 0.05): trades, fast-at",
    ]


def test_union_of_norms_is_a_column():
    """Screening in L2 leaves the last 12 images of each: 5 + 12 - 20 < 0 for at, 15 + 12 - 20 = 7 of 20 for trades."""
    l2 = [
        {**r, "attack": "screen", "threat_norm": "L2", "threat_eps": eps, "robust_bits": "0" * 8 + "1" * 12}
        for r in records() for eps in (0.5, 1.0) if r["defense"] != "fast-at"
    ]  # fmt: skip
    lines = gain_lines(records() + l2, "at")
    linf = lines[(lines["threat_norm"] == "Linf") & (lines["selection"] == "last")].set_index("defense")
    assert linf["union"].fillna(-1).to_dict() == {"trades": 7 / 20, "at": 0, "fast-at": -1}
    assert set(linf["union_of"]) == {"Linf 0.1, L2 0.5"}
    text = gains(records() + l2, "at", "md")
    assert "| trades | 100.0 | 100.0 | 75.0 | 35.0 | 35.0 | 0.0 | +50.0 (0.0078)" in text
    assert "worst case over screen" in text and "at all of Linf 0.1, L2 0.5" in text


def test_models_of_other_seeds_have_no_gain():
    more = [r | {"seed": 1, "weights_digest": r["weights_digest"] + "1"} for r in records() if r["defense"] == "trades"]
    lines = gain_lines(records() + more, "at").set_index(["defense", "selection"])
    assert lines.loc["trades (seed 1)", "gain"].isna().all() and lines.loc["trades", "gain"].notna().all()


def test_wrong_requests_are_refused():
    with pytest.raises(RequestError, match="unknown baseline 'trade'; did you mean 'trades'"):
        gains(records(), "trade")
    with pytest.raises(RequestError, match="unknown format with --baseline 'latex'"):
        gains(records(), "at", "latex")


def test_every_format_holds_the_numbers():
    assert "| trades | 100.0 | 100.0 | 75.0 | 35.0 | +50.0 (0.0078) | +5.0 (1) | 1.50 |" in gains(records(), "at", "md")
    assert {line["gain"] for line in json.loads(gains(records(), "at", "json"))} >= {0.5, None}
    assert len(gains(records(), "at", "csv").splitlines()) == len(ROBUST) + 1
    assert max(map(len, gains(records(), "at").splitlines())) <= 80


def test_readme_of_board_can_hold_gains():
    text = update_tables("<!-- gains over at: . -->\n<!-- end -->\n", BOARD)
    assert "| iad | 43.5 | 24.1 | 40.6 | -2.0 (0.017) | 2.60 | 2.60 | 2.53 |" in text
