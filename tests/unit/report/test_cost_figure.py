"""The figure of robust accuracy against cost, by hand-worked values."""

import numpy as np
import pandas as pd
import pytest

from robobench.report.cost_figure import pareto_front, plot_cost
from robobench.report.leaderboard import rank_models
from tests.helpers.rows import make_table_rows

WORST = {"standard": 0.01, "fast-at": 0.20, "at": 0.25, "trades": 0.24, "rslad": 0.25}
COST = {"standard": 1e5, "fast-at": 2e5, "at": 4e5, "trades": 5e5, "rslad": 9e5}  # rslad includes its teacher


def lines(worst=WORST, cost=COST, **more):
    rows = make_table_rows(worst, threats=(("Linf", 8 / 255),), **more)
    return rank_models(rows.assign(total_train_forwards=rows["defense"].map(cost)))


def panels(figure):
    """Return the texts of every panel that is shown: bold ones are on the front."""
    out = {}
    for axes in figure.axes:
        if axes.get_visible():
            out[axes.get_xlabel()] = {text.get_text(): text.get_fontweight() == "bold" for text in axes.texts}
    return out


@pytest.mark.parametrize(
    ("cost", "gain", "front"),
    [
        ([1, 2, 3, 2, 4], [0, 5, 4, 7, 8], [0, 3, 4]),  # 1 costs as much as 3 and gains less, 2 costs more
        ([1, 1, 2], [5, 5, 5], [0, 1]),  # equal points do not dominate each other
        ([3, 1, 2], [1, 3, 2], [1]),  # the cheapest is the best
        ([], [], []),
    ],
)
def test_pareto_front_keeps_undominated_points(cost, gain, front):
    assert pareto_front(np.array(cost, float), np.array(gain, float)) == front


def test_every_known_cost_has_a_panel():
    """By time, in the order of the rows, rslad is dominated by at; by passes trades is too."""
    found = panels(plot_cost(lines()))
    assert list(found) == ["time (s)", "forward-pass equivalents"]
    for names in found.values():
        assert {name for name, bold in names.items() if bold} == {"standard", "fast-at", "at"}
        assert set(names) == set(WORST)  # each point has its name, not only its color


def test_unranked_models_are_not_on_the_front():
    """A flag that makes an accuracy unreliable takes the rank; the model stays visible as a cross."""
    rows = make_table_rows(WORST, threats=(("Linf", 8 / 255),))
    rows.loc[rows["defense"] == "fast-at", "flags"] = "zero-gradients"
    some = rank_models(rows)
    assert list(some.loc[some["unranked"] != "", "defense"]) == ["fast-at"]
    (names,) = panels(plot_cost(some)).values()
    assert not names["fast-at"] and names["at"]


def test_many_models_have_numbers_and_a_key():
    worst = {f"m{n}": 0.2 - 0.001 * n for n in range(20)}  # m0 is the most robust and the cheapest
    figure = plot_cost(lines(worst, {name: 1e5 * (n + 1) for n, name in enumerate(worst)}))
    for names in panels(figure).values():
        assert set(names) == {"m0", *(str(n) for n in range(2, 21))}
    key = [text.get_text() for text in figure.legends[0].get_texts()]
    assert key[-20:] == [f"{n + 1}  m{n}" for n in range(20)]


def test_kinds_of_weights_share_a_name():
    """The last and the averaged weights of a training are two points, with one name at the better one."""
    rows = make_table_rows({"at": 0.2, "at2": 0.3}, threats=(("Linf", 8 / 255),))
    rows["selection"] = rows["defense"].map({"at": "last", "at2": "average"})
    rows = pd.concat([rows.assign(defense="at")])
    figure = plot_cost(rank_models(rows))
    (names,) = panels(figure).values()
    assert list(names) == ["at"] and "averaged" in [text.get_text() for text in figure.legends[0].get_texts()]
