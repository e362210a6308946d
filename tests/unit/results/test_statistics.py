from __future__ import annotations

import math

import pytest

from robobench.results.statistics import (
    CLEAN,
    PerImageOutcomes,
    compact_letter_display,
    holm,
    mcnemar,
    paired_differences,
    seed_stats,
    wilson_interval,
)


def test_wilson_interval_by_hand():
    low, high = wilson_interval(50, 100)
    assert (low, high) == (pytest.approx(0.40383, abs=1e-5), pytest.approx(0.59617, abs=1e-5))
    assert wilson_interval(0, 10)[0] == 0 and wilson_interval(10, 10)[1] == 1
    assert wilson_interval(0, 10)[1] == pytest.approx(0.27753, abs=1e-5)


def test_wilson_interval_matches_scipy():
    from scipy.stats import binomtest

    for successes, count in ((0, 10), (3, 10), (50, 100), (9_731, 10_000), (10, 10)):
        interval = binomtest(successes, count).proportion_ci(0.95, "wilson")
        assert wilson_interval(successes, count) == pytest.approx((interval.low, interval.high), abs=1e-8)


# scipy sums the tails in floating point, so values agree to about 1e-13.
EXACT = 1e-12


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [
        (0, 0, 1.0),  # no image on which they differ
        (1, 9, 22 / 1024),  # 2 (1 + 10) / 2^10
        (9, 1, 22 / 1024),
        (2, 6, 74 / 256),  # 2 (1 + 8 + 28) / 2^8
        (3, 3, 1.0),  # 2 (1 + 6 + 15 + 20) / 2^6 is above 1
        (0, 5, 1 / 16),
    ],
)
def test_mcnemar_is_twice_binomial_tail(only_first, only_second, p):
    assert mcnemar(only_first, only_second) == pytest.approx(p, rel=EXACT)


def test_mcnemar_is_precise_on_many_images():
    tail = sum(math.comb(10_000, k) for k in range(4_801))
    assert mcnemar(4_800, 5_200) == pytest.approx(2 * tail / 2**10_000, rel=1e-9)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == [0.03, 0.06, 0.06]  # 3 x 0.01, max(2 x 0.03, 1 x 0.04), 2 x 0.03
    assert holm([0.5, 0.9, 0.6]) == [1.0, 1.0, 1.0]
    assert holm([0.2]) == [0.2] and holm([]) == []


def record(defense, robust, attack="pgd", seed=0, eps=0.1, **more):
    return {
        "defense": defense, "seed": seed, "attack": attack, "robust_bits": robust, "status": "ok", "is_control": False,
        "protocol": "white-box", "threat_norm": "Linf", "threat_eps": eps, "selection": "last",
        "training": f"{defense}-{seed}", "attack_budget": "steps=20", "search_precision": "fp32",
        "config_digest": defense, "weights_digest": defense, "clean_bits": "1010", **more,
    }  # fmt: skip


ONE, TWO, THREE = "1" * 9 + "0" * 11, "0" * 9 + "1" + "0" * 10, "1" * 20


def test_models_are_compared_per_image():
    at, macd = ([record(name, bits), record(name, THREE, "fgsm")] for name, bits in (("at", ONE), ("macd", TWO)))
    found = paired_differences([*at, *macd], "at")
    by = {pair.column[0]: pair for pair in found}
    assert (by["pgd"].model, by["pgd"].baseline) == ("macd", "at")
    assert by["pgd"].difference == pytest.approx(-8 / 20) and by["pgd"].p == pytest.approx(22 / 1024, rel=EXACT)
    assert by["fgsm"].p == 1 and by["fgsm"].difference == 0
    for name in ("pgd", "worst"):
        assert (by[name].only_model, by[name].only_baseline) == (1, 9)


def test_holm_covers_all_models_of_column():
    records = [record("at", ONE), record("macd", TWO), record("trades", THREE)]
    found = {p.model: p for p in paired_differences(records, "at") if p.column[0] == "pgd"}
    assert found["trades"].p == pytest.approx(2 * 2 / 2**11, rel=EXACT)
    assert found["macd"].p == pytest.approx(22 / 1024, rel=EXACT)


def test_only_equal_attack_sets_are_compared():
    """Baselines of another seed and failed cells are not compared either."""
    records = [record("at", ONE), record("at", ONE, "fgsm"), record("macd", TWO)]
    records += [
        record("macd", None, "fgsm", status="failed", reason="it broke"),
        record("standard", TWO, seed=1, is_control=True),
    ]
    assert {p.column[0] for p in paired_differences(records, "at")} == {"pgd"}  # no worst case: at has one attack more


def test_seeds_give_mean_spread_and_pairs():
    records = [
        record("at", "1100", clean_bits="1111"),
        record("at", "1110", seed=1),
        record("macd", "1000"),
        record("macd", "0000", seed=1),
    ]
    (at,) = (s for s in seed_stats(records) if s.defense == "at" and s.column[0] == "pgd")
    assert at.mean == 0.625 and at.deviation == pytest.approx(math.sqrt(2) / 8)
    assert [s.values for s in seed_stats(records) if s.column == CLEAN] == [(1.0, 0.5), (0.5, 0.5)]
    assert {(p.model, p.baseline) for p in paired_differences(records, "at")} == {
        ("macd (seed 0)", "at (seed 0)"), ("macd (seed 1)", "at (seed 1)"),
    }  # fmt: skip


def test_epochs_and_settings_are_separate_models():
    records = [record("at", "1100"), record("at", "0011", selection="best")]
    records += [record("at", "1010", config_digest="other")]
    pairs = paired_differences([*records, record("macd", "1111")], "at")
    found = {p.model: (p.only_model, p.only_baseline) for p in pairs}
    assert found == {"at, best epoch": (2, 2), "at'": (1, 1), "macd": (2, 0)}
    only_best = [record(name, bits, selection="best") for name, bits in (("at", "1100"), ("macd", "1111"))]
    assert {p.model for p in paired_differences(only_best, "at")} == {"macd"}


def test_setting_name_is_independent_of_order():
    def two(seed, order):
        return [record("at", bits, seed=seed, config_digest=setting) for setting, bits in order]

    records = [*two(0, (("a", "1111"), ("b", "0000"))), *two(1, (("b", "0000"), ("a", "1111")))]
    assert {s.defense: s.values for s in seed_stats(records) if s.column[0] == "pgd"} == {"at": (1, 1), "at'": (0, 0)}


def test_different_budgets_are_not_compared():
    records = [record("at", "1100"), record("macd", "1000", attack_budget="steps=100")]
    assert paired_differences(records, "at") == []
    seeds = [record("at", "1100"), record("at", "1000", seed=1, attack_budget="steps=100")]
    assert {s.column for s in seed_stats(seeds)} == {CLEAN}


def test_search_precisions_are_not_compared():
    records = [record("at", "1100"), record("macd", "1000", search_precision="bf16")]
    assert paired_differences(records, "at") == []


def test_significance_groups_share_letters():
    def first(count):
        return PerImageOutcomes.parse("1" * count + "0" * (200 - count))

    # The sets of correct images are nested, so only one of two models errs alone: p = 2 / 2^n, and Holm multiplies it
    # by at most 6.
    assert compact_letter_display({"a": first(100), "b": first(94), "c": first(88), "d": first(0)}) == {
        "a": "a", "b": "ab", "c": "b", "d": "c"
    }  # fmt: skip
    assert compact_letter_display({"low": first(100), "high": first(120)}) == {"low": "b", "high": "a"}
    assert compact_letter_display({"one": first(3), "same": first(3)}) == {"one": "a", "same": "a"}
