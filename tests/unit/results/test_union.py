"""Accuracy under several threats at once, counted by hand."""

import json

import pytest

from robobench.cli import main
from robobench.errors import RequestError
from robobench.results.rows import bundled_boards
from robobench.results.union import parse_threats, union_rows
from tests.helpers.records import evaluation_record as record

THREATS = [("Linf", 0.1), ("L2", 0.5), ("L1", 12.0)]


def cells(**more):
    """Clean 0111 1111; each threat loses other images, two attacks at L2."""
    clean = {"clean": "01111111", **more}
    return [
        record(robust="01111100", **clean),
        record(robust="01101111", threat_norm="L2", eps=0.5, **clean),
        record("square", robust="00111111", threat_norm="L2", eps=0.5, **clean),
        record(robust="01111110", threat_norm="L1", eps=12.0, **clean),
    ]


def test_union_is_counted_by_image():
    """Images 0, 1, 4, 6 and 7 are lost at one of the threats; the lowest single threat keeps 5 of 8."""
    row = union_rows(cells(), THREATS).iloc[0]
    assert (row["clean_accuracy"], row["union_accuracy"]) == (7 / 8, 3 / 8)
    assert (row["Linf 0.1"], row["L2 0.5"], row["L1 12"]) == (5 / 8, 5 / 8, 6 / 8)
    assert row["attacks"] == "Linf 0.1: pgd; L2 0.5: pgd,square; L1 12: pgd" and row["reason"] == ""


def test_missing_threat_gives_no_number():
    """A failed attack leaves its threat unknown; a model that is attacked elsewhere only has no row."""
    broken = [r | {"status": "failed", "reason": "x"} if r["attack"] == "square" else r for r in cells(training="b")]
    other = [record(training="c", eps=0.3)]
    rows = union_rows([*broken, *cells(), *other], THREATS)
    assert rows["union_accuracy"].isna().tolist() == [False, True]
    assert rows["reason"].tolist() == ["", "no result at L2 0.5"]
    with pytest.raises(RequestError, match="no model was attacked at"):
        union_rows(other, THREATS)


def test_threats_are_parsed():
    assert parse_threats("linf:8/255, L2:0.5") == [("Linf", 8 / 255), ("L2", 0.5)]
    for wrong in ("Linf:8/255", "Linf:8/255,Linf:8/255", "0.5,L2:1", "L3:1,L2:1", ""):
        with pytest.raises(RequestError):
            parse_threats(wrong)


def test_command_reads_committed_board(capsys):
    """The board has Linf 8/255 and 16/255: their union is the larger ball's worst case or less."""
    board = next(str(place) for place in bundled_boards() if place.name == "cifar10-jpeg-resnet20")
    words = ["leaderboard", board, "--union", "Linf:8/255,Linf:16/255"]
    assert main([*words, "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) > 9
    for row in rows:
        if row["union_accuracy"] is not None:
            assert row["union_accuracy"] <= min(row["Linf 8/255"], row["Linf 16/255"])
    assert main(words) == 0
    assert "union" in capsys.readouterr().out
