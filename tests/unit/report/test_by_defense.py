import io

import pandas as pd
import pytest

from robobench.errors import RequestError
from robobench.report.by_defense import combine_seeds
from robobench.report.leaderboard import interval_heading, rank_models
from robobench.report.leaderboard_formats import leaderboard
from tests.helpers.rows import make_table_rows


def three_seeds():
    """`at` with worst cases 0.40, 0.44 and 0.48; `trades` with 0.41, once."""
    rows = make_table_rows({"at": 0.40, "at1": 0.44, "at2": 0.48, "trades": 0.41}, threats=(("Linf", 8 / 255),))
    seeds = {"at1": 1, "at2": 2}
    rows["seed"] = rows["defense"].map(seeds).fillna(0)
    rows["defense"] = rows["config_digest"] = rows["defense"].str.replace(r"\d", "", regex=True)
    return rows


def test_seeds_become_mean_and_deviation():
    lines = combine_seeds(rank_models(three_seeds()))
    assert lines["defense"].tolist() == ["at", "trades"] and lines["n"].tolist() == [3, 1]
    assert lines["worst"].tolist() == pytest.approx([0.44, 0.41])
    assert lines["worst_std"][0] == pytest.approx(0.04) and pd.isna(lines["worst_std"][1])
    assert lines["best"].tolist() == [True, True]  # 0.41 is above 0.44 - 0.04
    assert lines["seed"].tolist() == ["0,1,2", "0"]


def test_heading_names_the_interval():
    rows = three_seeds()
    assert interval_heading(combine_seeds(rank_models(rows))) == "95 % CI or mean ± std"
    assert interval_heading(combine_seeds(rank_models(rows[rows["defense"] == "at"]))) == "mean ± std"
    assert interval_heading(combine_seeds(rank_models(rows[rows["seed"] == 0]))) == "95 % CI"


def test_source_is_left_out_of_transfer_mean():
    rows = three_seeds()
    source = rows.loc[rows["seed"] == 2, "weights_digest"].iloc[0]
    lines = combine_seeds(rank_models(rows), {source})
    assert lines["transfer"][0] == pytest.approx((0.50 + 0.54) / 2)


@pytest.mark.parametrize("form", ["table", "md", "html"])
def test_spread_is_shown(form):
    text = leaderboard(three_seeds(), form, by="defense")
    assert "44.0 ± 4.0" in text and "seeds" in text and "(seed 1)" not in text


def test_latex_has_spread_names_and_threat():
    text = leaderboard(three_seeds(), "latex", by="defense")
    assert r"AT & 3 & 95.0 $\pm$ 0.0 & \textbf{44.0 $\pm$ 4.0}" in text and r"TRADES & 1 & 95.0 & \textbf{41.0}" in text
    assert r"$\ell_\infty$, $\epsilon = 8/255$. Worst: per image over PGD-20, white-box" in text


@pytest.mark.parametrize("form", ["table", "md", "csv", "json", "latex", "html"])
def test_columns_are_obeyed_by_every_format(form):
    text = leaderboard(three_seeds(), form, by="defense", columns=["defense", "clean"])
    heading = text if form == "csv" else text.replace("training", "")
    assert "train time" not in heading and "transfer" not in heading
    if form == "csv":
        assert list(pd.read_csv(io.StringIO(text)).columns)[-3:] == ["defense", "clean", "clean_std"]


def test_number_of_seeds_needs_by_defense():
    with pytest.raises(RequestError, match="add --by defense"):
        leaderboard(three_seeds(), columns=["n"])
