"""The best of a grid is chosen on held-out training images, and p-values are corrected over the grid."""

import pytest
from rich.console import Console

from robobench.planning.request import ExperimentConfig
from robobench.planning.study import Point
from robobench.report.study import choose_settings, label_settings, print_study
from tests.helpers.records import evaluation_record

POINTS = [Point(ExperimentConfig(), (("trades.beta", beta), ("epochs", "1"))) for beta in ("3", "6")]


def record(defense, setting, robust, held_out, seed=0, **more):
    timing = {
        **{"train_seconds": 1.0, "total_train_seconds": 1.0, "flags": []},
        "selection": {"epoch": 1, "best_pgd": held_out, "last_pgd": held_out, "images": 1000},
    }
    name = f"{defense}-{setting}-{seed}"
    own = {"config_digest": f"{defense}{setting}", "weights_digest": name, "selection": "last", "train_eps": 0.1}
    return evaluation_record(
        key=name, defense=defense, training=name, robust=robust, clean="1" * 20, seed=seed, timing=timing,
        train_norm="Linf", precision="fp32", **own | more,
    )  # fmt: skip


def results():
    """Return records of `at`, the same in both requests, and of `trades`, one setting in each."""
    at = record("at", "", "1" * 9 + "0" * 11, 0.4)
    better_on_test = record("trades", "beta=3", "0" * 9 + "1" * 11, 0.3)
    better_held_out = record("trades", "beta=6", "0" * 9 + "1" + "0" * 10, 0.5)
    return [[at, better_on_test], [at, better_held_out]]


def test_setting_keeps_only_axes_it_depends_on():
    labels = label_settings(POINTS, results())
    assert dict(labels["tradesbeta=3"])["trades.beta"] == "3"
    assert "trades.beta" not in dict(labels["at"])


def test_best_setting_ignores_test_images():
    parts = results()
    records = [r for part in parts for r in part]
    settings = choose_settings(records, label_settings(POINTS, parts))
    assert [(s.label.split(",")[0], s.is_best) for s in settings] == [("trades.beta=6", True), ("trades.beta=3", False)]


def test_best_setting_is_mean_over_seeds():
    parts = [
        [record("trades", "3", "1" * 20, 0.3, seed=0), record("trades", "3", "1" * 20, 0.7, seed=1)],
        [record("trades", "6", "1" * 20, 0.45, seed=0), record("trades", "6", "1" * 20, 0.45, seed=1)],
    ]
    settings = choose_settings([r for part in parts for r in part], label_settings(POINTS, parts))
    assert [(s.accuracy, s.seeds) for s in settings] == [(pytest.approx(0.5), 2), (pytest.approx(0.45), 2)]


def test_other_training_radius_is_not_compared():
    """Accuracy at a smaller radius is higher for every model."""
    parts = [[record("trades", "a", "1" * 20, 0.3)], [record("trades", "b", "1" * 20, 0.6, train_eps=0.05)]]
    assert choose_settings([r for part in parts for r in part], label_settings(POINTS, parts)) == []


def test_p_values_are_corrected_over_grid():
    """9 to 1 images: p = 2 (1 + 10) / 2^10 = 0.0215, doubled; 9 to 11: p = 0.82."""
    console = Console(width=200)
    with console.capture() as captured:
        print_study(POINTS, results(), console, "at")
    text = captured.get()
    assert "-40.0 (0.043)" in text and "Holm-corrected over the grid" in text
    assert "+10.0 (0.82)" in text and "trades.beta=6 (best)" in text.replace(", epochs=1", "")


def test_parts_of_grid_are_compared_separately():
    """Models of two networks are compared with the baseline of their network; Holm runs over all of them."""
    one = [record("at", "", "1" * 9 + "0" * 11, 0.4), record("trades", "", "0" * 9 + "1" + "0" * 10, 0.4)]
    two = [r | {"model": "resnet20", "config_digest": r["config_digest"] + "r", "key": r["key"] + "r"} for r in one]
    points = [Point(ExperimentConfig(), (("model", model),)) for model in ("cnn", "resnet20")]
    console = Console(width=200)
    with console.capture() as captured:
        print_study(points, [one, two], console, "at")
    assert captured.get().count("-40.0 (0.043)") == 4  # pgd and the worst case, of two networks
