import numpy as np
import pandas as pd

from robobench.report.html import parts
from robobench.report.leaderboard import rank_models
from tests.helpers.rows import MODELS, make_table_rows


def test_columns_of_dashes_are_dropped():
    table = pd.DataFrame({"defense": ["-", "-"], "clean": ["1.0", "-"], "flags": ["-", ""]})
    assert list(parts.drop_empty_columns(table).columns) == ["defense", "clean"]


def test_worst_class_has_lowest_robust_accuracy():
    labels = np.array([0, 0, 1, 1])
    outcomes = np.array([1, 1, 1, 0], bool), np.array([1, 0, 0, 0], bool)
    line = parts._class_line(*outcomes, labels, [0, 1], ("cat", "dog").__getitem__)
    assert line == {"cat": "100 / 50", "dog": "50 / 0", "worst class": "dog: 50 / 0"}


def test_outcome_names_best_and_its_interval():
    rows = make_table_rows(MODELS, threats=(("Linf", 8 / 255),))
    (sentence,) = parts.outcomes(rows, rank_models(rows))
    assert sentence == (
        "At Linf 8/255 (pgd) first keeps most accuracy: 50.0 % [48.0, 52.0] of 400 images, 95.0 % when clean. "
        "Inside its interval: inside."
    )
    one = make_table_rows({"at": 0.25}, threats=(("Linf", 8 / 255),))
    assert parts.outcomes(one, rank_models(one)) == [
        "Of 400 images 380 are classified correctly, 100 still after changes of at most 8/255 (Linf; pgd)."
    ]


def test_curves_of_missing_metrics_are_left_out(tmp_path):
    from robobench.store.artifacts import Store

    assert parts.training_curves([("at", pd.DataFrame(), None)], Store(tmp_path)) is None
