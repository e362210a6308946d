from __future__ import annotations

import pandas as pd
import pytest

from robobench import report
from robobench.errors import RequestError
from robobench.results.rows import COLUMNS, group_by_model, make_rows, read_rows, transfer_only, worst_case
from robobench.results.statistics import PerImageOutcomes, wilson


def record(attack="pgd", protocol="white-box", robust="0011", clean="0111", eps=0.1, **more):
    base = dict.fromkeys(COLUMNS)
    return {
        **base, "attack": attack, "protocol": protocol, "threat_norm": "Linf", "threat_eps": eps, "seed": 0,
        "examples": len(clean), "clean_bits": clean, "robust_bits": robust, "status": "ok", "defense": "at",
        "dataset": "digits", "data_digest": "d", "model": "cnn", "preset": "quick", "budget": "steps=20",
        "training": "at-1", "timing": {"train_seconds": 2.0, "total_train_seconds": 3.0, "flags": []}, "control": False, **more,
    }  # fmt: skip


def test_the_worst_case_is_taken_image_by_image():
    group = [record("pgd", robust="0011"), record("fgsm", robust="0101")]
    worst = worst_case(group, group[0], "white-box")
    assert worst is not None and worst.values == (False, False, False, True)
    rows = make_rows(group)
    assert [r["robust_accuracy"] for r in rows] == [0.5, 0.5]
    assert {r["worst_case_accuracy"] for r in rows} == {0.25}  # below the minimum of the two means
    assert rows[0]["worst_case_attacks"] == "fgsm,pgd"


def test_transfer_examples_of_two_sources_are_two_worst_cases():
    group = [
        record("pgd", "transfer", robust="0011", source_digest="a"),
        record("fgsm", "transfer", robust="0110", source_digest="b"),
        record("pgd", robust="0001"),
    ]
    rows = make_rows(group)
    assert [r["worst_case_accuracy"] for r in rows] == [0.5, 0.5, 0.25]
    assert [r["worst_case_attacks"] for r in rows] == ["pgd", "fgsm", "pgd"]


def test_the_same_weights_on_other_images_are_another_group():
    first, other = record(robust="0011"), record(robust="1100", data_digest="other")
    assert len(group_by_model([first, other])) == 2


def test_a_failed_cell_stays_empty_and_out_of_the_worst_case():
    failed = record("jitter", status="failed", reason="it broke", robust_bits=None, clean_bits=None)
    rows = make_rows([record("pgd", robust="0111"), failed])
    assert rows[1]["robust_accuracy"] is None and rows[1]["reason"] == "it broke"
    assert rows[0]["worst_case_accuracy"] == 0.75
    assert rows[0]["worst_case_attacks"] == "pgd"


def bits(count: int, of: int = 200) -> PerImageOutcomes:
    return PerImageOutcomes(tuple(i < count for i in range(of)))


@pytest.mark.parametrize(
    ("clean", "white", "transfer", "flag"),
    [(180, 18, 90, True), (180, 19, 90, False), (180, 18, 89, False), (180, 0, 180, True)],
)
def test_transfer_only_has_the_stated_thresholds(clean, white, transfer, flag):
    assert transfer_only(bits(clean), bits(white), bits(transfer)) is flag


def test_transfer_only_needs_200_images_and_both_protocols():
    assert not transfer_only(bits(199, 199), bits(0, 199), bits(199, 199))
    assert not transfer_only(bits(200), bits(0), None)


def test_the_wilson_interval_matches_values_worked_by_hand():
    low, high = wilson(50, 100)
    assert (low, high) == (pytest.approx(0.40383, abs=1e-5), pytest.approx(0.59617, abs=1e-5))
    assert wilson(0, 10)[0] == 0 and wilson(10, 10)[1] == 1
    assert wilson(0, 10)[1] == pytest.approx(0.27753, abs=1e-5)


def frame(*records):
    return pd.DataFrame(make_rows(list(records)), columns=COLUMNS)


def test_a_matrix_marks_reduced_budgets_and_leaves_failures_as_dashes():
    rows = frame(
        record("pgd"),
        record("autoattack", budget="reduced: apgd-ce 5", robust="0001"),
        record("jitter", status="failed", reason="x", robust_bits=None, clean_bits=None),
    )
    (line,) = report.matrix(rows, "white-box").to_dict("records")
    assert line["pgd Linf 0.1"] == "50.0"
    assert line["autoattack Linf 0.1"] == "25.0*"
    assert line["jitter Linf 0.1"] == "-"
    assert line["clean"] == "75.0"
    assert report.budgets(rows) == ["* autoattack: reduced: apgd-ce 5"]


def test_networks_attacked_by_other_sets_stand_on_other_boards():
    weak = frame(record("fgsm", robust="0111"))
    strong = frame(record("fgsm", robust="0011"), record("pgd", robust="0001"))
    strong["defense"], strong["weights_digest"] = "trades", "other"
    titles = [title for title, _ in report.board_titles(pd.concat([weak, strong]))]
    assert len(titles) == 2
    assert report.board(pd.concat([weak, strong]))["rank"].tolist() == [1, 1]


def test_networks_attacked_by_other_budgets_stand_on_other_boards_whose_titles_tell_them_apart():
    weak, strong = frame(record("pgd")), frame(record("pgd", budget="steps=100"), record("fgsm", protocol="transfer"))
    strong["defense"], strong["weights_digest"] = "trades", "other"
    rows = pd.concat([weak, strong])
    titles = [title for title, _ in report.board_titles(rows)]
    assert [title.split(" images; ")[1] for title in titles] == [
        "worst case over pgd (pgd: steps=100)",
        "worst case over pgd (pgd: steps=20)",
    ]
    assert report.board(rows)["rank"].tolist() == [1, 1]
    assert [title for title, _ in report.board_titles(weak)] == ["digits, cnn, Linf 0.1, 4 images; worst case over pgd"]


def test_names_cannot_smuggle_markup_into_html_or_latex():
    rows = frame(record("pgd", defense="<script>x</script>_&"))
    assert "<script>" not in report.leaderboard(rows, "html")
    assert r"\_\&" in report.leaderboard(rows, "latex")


def test_an_unknown_format_is_refused_with_a_suggestion():
    with pytest.raises(RequestError, match="did you mean 'json'"):
        report.leaderboard(frame(record()), "jsn")


def test_a_file_that_is_no_table_of_rows_is_refused(tmp_path):
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    with pytest.raises(RequestError, match="lacks dataset"):
        read_rows(tmp_path)
