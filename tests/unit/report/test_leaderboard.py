import re

import pandas as pd
import pytest

from robobench.errors import RequestError
from robobench.report.leaderboard import filter_rows, rank_models, split_leaderboards
from robobench.report.leaderboard_formats import leaderboard
from robobench.results.rows import make_frame
from tests.helpers.records import evaluation_record as record
from tests.helpers.rows import MODELS, make_table_rows


def titles(rows):
    return [title for title, _ in split_leaderboards(rank_models(rows))]


def test_best_and_all_inside_its_interval_are_marked():
    lines = rank_models(make_table_rows(MODELS))
    assert lines.groupby("defense")["best"].all().to_dict() == {"first": True, "inside": True, "outside": False}
    assert lines["gap"].tolist() == pytest.approx([0.1] * 6)
    assert lines["rank"].tolist() == [1, 2, 3, 1, 2, 3]
    text = leaderboard(make_table_rows(MODELS))
    assert text.count("50.0^") == 2 and text.count("48.5^") == 2 and "47.5^" not in text


def test_no_best_if_all_accuracies_are_zero():
    assert not rank_models(make_table_rows({"a": 0.0, "b": 0.0}))["best"].any()


def other_model(rows):
    return rows.assign(defense="trades", weights_digest="other")


def test_other_attacks_make_other_leaderboards():
    weak = make_frame([record("fgsm", robust="0111")])
    strong = other_model(make_frame([record("fgsm", robust="0011"), record("pgd", robust="0001")]))
    rows = pd.concat([weak, strong])
    assert len(titles(rows)) == 2
    assert rank_models(rows)["rank"].tolist() == [1, 1]


def test_other_budgets_make_other_leaderboards():
    """Their titles name the budgets."""
    weak = make_frame([record("pgd")])
    strong = make_frame([record("pgd", attack_budget="steps=100"), record("fgsm", protocol="transfer")])
    rows = pd.concat([weak, other_model(strong)])
    assert [title.split(" images; ")[1] for title in titles(rows)] == [
        "worst case over pgd (pgd: steps=100)",
        "worst case over pgd (pgd: steps=20)",
    ]
    assert rank_models(rows)["rank"].tolist() == [1, 1]
    assert titles(weak) == ["digits, cnn, Linf 0.1, 4 images; worst case over pgd"]


def test_failed_attack_leaves_model_unranked():
    failed = record("jitter", status="failed", reason="no gradient", robust_bits=None, weights_digest="w")
    both = make_frame([record("pgd"), record("jitter")])
    one = make_frame([record(defense="x", weights_digest="w"), {**failed, "defense": "x"}])
    rows = pd.concat([both, one])
    lines = rank_models(rows)
    assert lines["defense"].tolist() == ["at", "x"] and lines["rank"].tolist()[0] == 1
    assert pd.isna(lines["rank"][1]) and pd.isna(lines["worst"][1]) and not lines["best"][1]
    assert "not ranked: x: jitter failed: no gradient" in leaderboard(rows)
    only = make_frame([{**failed, "defense": "x"}])
    assert rank_models(only)["unranked"].tolist() == ["jitter failed: no gradient"]


@pytest.mark.parametrize(("flag", "ranked"), [("batch-dependent", False), ("transfer-only", True)])
def test_unreliable_models_are_not_ranked(flag, ranked):
    rows = make_table_rows({"masked": 0.9, "honest": 0.5}, threats=[("Linf", 0.1)])
    rows.loc[rows["defense"] == "masked", "flags"] = flag
    lines = rank_models(rows)
    assert lines["defense"].tolist() == (["masked", "honest"] if ranked else ["honest", "masked"])
    assert lines["rank"].tolist()[0] == 1 and (lines["rank"].notna().all() == ranked)


def test_other_calls_share_a_leaderboard():
    """One model's attacks may come from calls with another preset or number of threads."""
    one = make_frame([record("fgsm"), record("pgd")])
    other = other_model(make_frame([record("fgsm", preset="cifar", threads=2), record("pgd")]))
    rows = pd.concat([one, other])
    assert rank_models(rows)["rank"].tolist() == [1, 1]
    assert len(titles(rows)) == 1


def test_title_names_reduced_budgets():
    rows = make_frame([record("pgd", attack_budget="reduced: 5 steps", budget_reduced=True), record("fgsm")])
    (title,) = titles(rows)
    assert title.endswith("worst case over fgsm,pgd (pgd: reduced: 5 steps)")


def test_sort_filter_and_columns_select_what_is_shown():
    rows = make_table_rows(MODELS)
    by_cost = leaderboard(rows, sort="train_seconds", filters=["eps=1/10"], columns=["defense", "train_seconds"])
    lines = by_cost.splitlines()
    first = next(n for n, line in enumerate(lines) if line.startswith("──")) + 1
    assert [line.split()[0] for line in lines[first : first + 3]] == ["first", "inside", "outside"]
    assert "0.05" not in by_cost and "clean" not in by_cost
    assert leaderboard(rows, sort="gap").index("first") > 0
    assert set(filter_rows(rows, ["defense=first,inside", "norm=linf"])["defense"]) == {"first", "inside"}
    for wrong, message in (
        ({"sort": "wrost"}, "did you mean 'worst'"),
        ({"columns": ["wrost"]}, "did you mean 'worst'"),
        ({"filters": ["defence=at"]}, "did you mean 'defense'"),
        ({"filters": ["defense=at"]}, "matches no row; values: first, inside, outside"),
        ({"filters": ["eps=wide"]}, "eps must be a number"),
        ({"filters": ["defense"]}, "is not NAME=VALUE"),
    ):
        with pytest.raises(RequestError, match=re.escape(message)):
            leaderboard(rows, **wrong)


def test_verdicts_of_one_model_are_two_lines():
    """The records of a random model under two verdicts are never combined, nor shown under one name."""
    rows = make_table_rows({"at": 0.4}, threats=[("Linf", 0.1)])
    other = make_table_rows({"at": 0.3}, threats=[("Linf", 0.1)])
    lines = rank_models(pd.concat([rows.assign(verdict="11/20"), other.assign(verdict="1/20")], ignore_index=True))
    assert list(zip(lines["defense"], lines["worst"], lines["transfer"], strict=True)) == [
        ("at, verdict 11/20", 0.4, 0.5),
        ("at, verdict 1/20", 0.3, pytest.approx(0.4)),
    ]
    assert list(rank_models(rows.drop(columns="verdict"))["defense"]) == ["at"]
