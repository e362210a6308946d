import io
import json
import re
import time

import pandas as pd
import pytest
from rich.console import Console

from robobench.errors import RequestError
from robobench.report.leaderboard import HEADINGS, format_leaderboard, rank_models, split_leaderboards
from robobench.report.leaderboard_formats import MARK, leaderboard, render_leaderboard
from robobench.report.matrix import print_matrices
from robobench.results.rows import make_frame, read_rows
from tests.helpers.records import evaluation_record as record
from tests.helpers.rows import ATTACKS, MODELS, make_table_rows

LONG_NAME = "a defense with a name of rather many letters"


@pytest.mark.parametrize("width", [80, 120, 200])
def test_tables_fit_the_terminal(monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    models = {"trades": 0.8123, "standard": 0.3, LONG_NAME: 0.2}
    threats = (("Linf", 8 / 255), ("Linf", 16 / 255), ("L2", 0.5))
    rows = make_table_rows(models, ATTACKS, threats, flags="transfer-only,other-flag")
    rows.loc[rows["defense"] == "standard", ["is_control", "seed"]] = [True, 11]
    text = leaderboard(rows)
    buffer = io.StringIO()
    print_matrices(rows, Console(file=buffer, width=width))
    shown = buffer.getvalue()
    for line in [*text.splitlines(), *shown.splitlines()]:
        assert len(line) <= width, line
    for value in ("81.2^", "95.0", "91.2", "transfer-only"):
        assert value in text
    assert "\x1b" not in text  # no colors in a pipe
    assert "83.2" in shown and "81.2 [79.2, 83.2]" in shown and "transfer-only" in shown
    assert "…" not in text + shown


def test_headings_and_flags_are_not_broken_inside_words(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    rows = make_table_rows({"trades": 0.8123, LONG_NAME: 0.2}, flags="black-box-lowers-ensemble")
    buffer = io.StringIO()
    print_matrices(rows, Console(file=buffer, width=80))
    words = set((leaderboard(rows) + buffer.getvalue()).split())
    assert {"rank", "transfer", "teachers", "warm-up", "(forward", "equiv.)", "black-box-lowers-ensemble:"} <= words
    assert {"95", "%", "CI"} <= words


@pytest.mark.parametrize("width", [80, 200])
@pytest.mark.parametrize(
    "options", [{"wide": True}, {"columns": ("rank", "defense", "hardware", "ci", "total_train_seconds", "flags")}]
)
def test_selected_columns_without_room_form_further_tables(width, options):
    rows = make_table_rows({"trades": 0.8123, LONG_NAME: 0.2}, flags="transfer-only")
    rows["hardware"] = "AMD EPYC 9R14 Processor of a rather long name, 2 cores, AVX2"
    console = Console(file=io.StringIO(), width=width)
    (_, lines), *_ = split_leaderboards(rank_models(rows))
    names = tuple(name for name in HEADINGS if name != "n") if "wide" in options else options["columns"]
    console.print(render_leaderboard("title", lines, names, console))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(len(line) <= width for line in text.splitlines()) and "…" not in text
    words = text.split()
    for name in names:
        for value in format_leaderboard(lines, [name], MARK)[HEADINGS[name]]:
            assert set(str(value).split()) <= set(words), (name, value)
    piped = leaderboard(rows, **options)
    if "wide" in options:  # a pipe is not limited to the width of a terminal
        assert piped.count("hardware") == 2 and len(max(piped.splitlines(), key=len)) > 200


def test_ten_thousand_rows_are_ranked_and_all_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    many = {f"d{i}": 0.9 - i / 1000 for i in range(625)}
    rows = pd.concat(
        [
            make_table_rows(many, ATTACKS, (("Linf", 0.05),)),
            make_table_rows(many, ATTACKS, (("Linf", 0.1),), dataset="other"),
        ]
    )
    assert len(rows) == 10_000
    rows.to_csv(tmp_path / "rows.csv", index=False)
    start = time.process_time()
    text = leaderboard(read_rows(tmp_path))
    assert time.process_time() - start < 5  # 1.6 s on 2 cores of an AMD EPYC
    assert all(len(re.findall(rf"^ *\d+ +d{number} ", text, re.M)) == 2 for number in range(625))


def test_markdown_escapes_names_and_bolds_best():
    text = leaderboard(make_table_rows({"a|b <b>*": 0.5, "c": 0.1}), "md")
    assert r"a\|b &lt;b&gt;\*" in text and "**50.0**" in text and "**10.0**" not in text
    assert "| worst-case robust acc. (white-box) | 95 % CI | transfer | transfer - white-box |" in text


def test_csv_and_json_contain_fractions():
    rows = make_table_rows(MODELS)
    table = pd.read_csv(io.StringIO(leaderboard(rows, "csv")))
    assert table["worst"].tolist() == pytest.approx(rank_models(rows)["worst"].tolist())
    assert [line["best"] for line in json.loads(leaderboard(rows, "json"))] == table["best"].tolist()


def test_names_are_escaped_in_html_and_latex():
    rows = make_frame([record("pgd", defense="<script>x</script>_&")])
    assert "<script>" not in leaderboard(rows, "html")
    assert r"\_\&" in leaderboard(rows, "latex")


def test_unknown_format_is_refused_with_suggestion():
    with pytest.raises(RequestError, match="did you mean 'json'"):
        leaderboard(make_frame([record()]), "jsn")
