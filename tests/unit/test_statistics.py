from __future__ import annotations

import math

import pytest
from rich.console import Console

from robobench.cli import main
from robobench.report.comparison import show
from robobench.results.statistics import (
    CLEAN,
    PerImageOutcomes,
    compact_letter_display,
    holm,
    mcnemar,
    paired_differences,
    seed_stats,
)


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [
        (0, 0, 1.0),  # nothing to say
        (1, 9, 22 / 1024),  # 2 (1 + 10) / 2^10
        (9, 1, 22 / 1024),
        (2, 6, 74 / 256),  # 2 (1 + 8 + 28) / 2^8
        (3, 3, 1.0),  # 2 (1 + 6 + 15 + 20) / 2^6 is above 1
        (0, 5, 1 / 16),
    ],
)
def test_mcnemar_is_twice_the_binomial_tail(only_first, only_second, p):
    assert mcnemar(only_first, only_second) == p


def test_mcnemar_keeps_its_precision_on_ten_thousand_images():
    tail = sum(math.comb(10_000, k) for k in range(4_801))
    assert mcnemar(4_800, 5_200) == 2 * tail / 2**10_000


def test_holm_multiplies_the_smallest_most_and_never_falls_below_the_one_before():
    assert holm([0.01, 0.04, 0.03]) == [0.03, 0.06, 0.06]  # 3 x 0.01, max(2 x 0.03, 1 x 0.04), 2 x 0.03
    assert holm([0.5, 0.9, 0.6]) == [1.0, 1.0, 1.0]
    assert holm([0.2]) == [0.2] and holm([]) == []


def record(defense, robust, attack="pgd", seed=0, eps=0.1, **more):
    return {
        "defense": defense, "seed": seed, "attack": attack, "robust_bits": robust, "status": "ok", "control": False,
        "protocol": "white-box", "threat_norm": "Linf", "threat_eps": eps, "selection": "last",
        "training": f"{defense}-{seed}", "budget": "steps=20", "config_digest": defense, "weights_digest": defense,
        "clean_bits": "1010", **more,
    }  # fmt: skip


ONE, TWO, THREE = "1" * 9 + "0" * 11, "0" * 9 + "1" + "0" * 10, "1" * 20


def test_two_networks_are_compared_image_by_image():
    at, macd = ([record(name, bits), record(name, THREE, "fgsm")] for name, bits in (("at", ONE), ("macd", TWO)))
    found = paired_differences([*at, *macd], "at")
    by = {pair.column[0]: pair for pair in found}
    assert (by["pgd"].network, by["pgd"].baseline) == ("macd", "at")
    assert by["pgd"].difference == pytest.approx(-8 / 20) and by["pgd"].p == 22 / 1024
    assert by["fgsm"].p == 1 and by["fgsm"].difference == 0
    for name in ("pgd", "worst"):
        assert (by[name].only_network, by[name].only_baseline) == (1, 9)


def test_a_column_of_several_networks_is_corrected_over_all_of_them():
    records = [record("at", ONE), record("macd", TWO), record("trades", THREE)]
    found = {p.network: p for p in paired_differences(records, "at") if p.column[0] == "pgd"}
    assert found["trades"].p == 2 * 2 / 2**11 and found["macd"].p == 22 / 1024


def test_controls_failed_cells_and_unequal_attack_sets_are_not_compared():
    records = [record("at", ONE), record("at", ONE, "fgsm"), record("macd", TWO)]
    records += [record("macd", None, "fgsm", status="failed"), record("standard", TWO, seed=1, control=True)]
    assert {p.column[0] for p in paired_differences(records, "at")} == {"pgd"}  # no worst case: at saw one attack more


def test_several_seeds_give_mean_and_spread_and_pairs_within_a_seed():
    records = [
        record("at", "1100", clean_bits="1111"),
        record("at", "1110", seed=1),
        record("macd", "1000"),
        record("macd", "0000", seed=1),
    ]
    (at,) = (s for s in seed_stats(records) if s.defense == "at" and s.column[0] == "pgd")
    assert at.mean == 0.625 and at.deviation == pytest.approx(math.sqrt(2) / 8)
    assert [s.values for s in seed_stats(records) if s.column == CLEAN] == [(1.0, 0.5), (0.5, 0.5)]
    assert {(p.network, p.baseline) for p in paired_differences(records, "at")} == {
        ("macd (seed 0)", "at (seed 0)"), ("macd (seed 1)", "at (seed 1)"),
    }  # fmt: skip


def test_both_epochs_of_a_network_and_two_settings_of_a_method_are_networks_of_their_own():
    records = [record("at", "1100"), record("at", "0011", selection="best")]
    records += [record("at", "1010", config_digest="other")]
    found = {
        p.network: (p.only_network, p.only_baseline)
        for p in paired_differences([*records, record("macd", "1111")], "at")
    }
    assert found == {"at, best epoch": (2, 2), "at'": (1, 1), "macd": (2, 0)}
    only_best = [record(name, bits, selection="best") for name, bits in (("at", "1100"), ("macd", "1111"))]
    assert {p.network for p in paired_differences(only_best, "at")} == {"macd"}


def test_a_setting_keeps_its_name_whatever_the_order_of_its_seeds():
    def two(seed, order):
        return [record("at", bits, seed=seed, config_digest=setting) for setting, bits in order]

    records = [*two(0, (("a", "1111"), ("b", "0000"))), *two(1, (("b", "0000"), ("a", "1111")))]
    assert {s.defense: s.values for s in seed_stats(records) if s.column[0] == "pgd"} == {"at": (1, 1), "at'": (0, 0)}


def test_two_budgets_of_one_attack_are_not_compared():
    records = [record("at", "1100"), record("macd", "1000", budget="steps=100")]
    assert paired_differences(records, "at") == []
    seeds = [record("at", "1100"), record("at", "1000", seed=1, budget="steps=100")]
    assert {s.column for s in seed_stats(seeds)} == {CLEAN}


def test_the_printed_comparison_is_about_these_networks():
    console = Console(width=200)
    with console.capture() as caught:
        show([record("at", ONE), record("macd", TWO)], console, "at")
    text = caught.get()
    assert "-40.0" in text and "(0.021)" in text and "About these trained networks" in text


def test_a_baseline_that_is_not_compared_is_refused_before_anything_is_made(tmp_path, capsys):
    arguments = ["compare", "--defenses", "standard,at", "--baseline", "att", "--out", str(tmp_path / "runs")]
    assert main(arguments) == 2
    assert "unknown baseline 'att'; did you mean 'at'?" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_networks_share_a_letter_where_the_images_do_not_tell_them_apart():
    def first(count):
        return PerImageOutcomes(tuple(i < count for i in range(200)))

    # Of nested sets of images only one of two networks errs alone: p = 2 / 2^n, and holm multiplies by at most 6.
    assert compact_letter_display({"a": first(100), "b": first(94), "c": first(88), "d": first(0)}) == {
        "a": "a", "b": "ab", "c": "b", "d": "c"
    }  # fmt: skip
    assert compact_letter_display({"low": first(100), "high": first(120)}) == {"low": "b", "high": "a"}
    assert compact_letter_display({"one": first(3), "same": first(3)}) == {"one": "a", "same": "a"}
