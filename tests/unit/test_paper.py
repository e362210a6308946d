"""The published numbers, printed; tables resolved into requests; ours beside theirs."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import pytest

from robobench.cli import main
from robobench.core.threat import parse_eps
from robobench.paper import published, summary
from robobench.paper.comparison import as_text, line
from robobench.paper.requests import Scale, group_of, requests
from robobench.paper.run import flags_note
from robobench.paper.times import stage_units
from robobench.planning.plan import TrainingJob
from robobench.planning.planner import Planner
from robobench.planning.request import ExperimentConfig
from robobench.results.statistics import wilson
from robobench.store.artifacts import hash_recipe
from robobench.training.base import DefenseSetup, FrozenModel, Stage
from tests.oracles.test_macd_mae import TINY
from tests.helpers.toys import TinyBatchNormNet

FILE = Path(__file__).parents[2] / "leaderboards/published/macd-paper/tables.json"
PAPER = json.loads(FILE.read_text())


def printed(capsys, *arguments: str) -> str:
    assert main(["paper", "table", *arguments]) == 0
    return capsys.readouterr().out


def test_every_one_of_the_401_numbers_is_printed_and_equals_the_json(capsys):
    walked = 0
    for table in published.NUMBERED:
        mine = [r for r in PAPER["records"] if r["table"] == f"T{table}"]
        assert json.loads(printed(capsys, table, "--format", "json")) == mine
        lines = [
            [cell.strip() for cell in line[1:-1].split("|")]
            for line in printed(capsys, table, "--format", "md").splitlines()
            if line.startswith("|")
        ]
        head, cells = lines[0], {(line[0], c): text for line in lines[2:] for c, text in enumerate(line)}
        for r in mine:
            text = cells[published.row_name(r), head.index(published.column_name(r))]
            assert float(text.rstrip("*?")) == r["value"], r["id"]
            assert text.endswith(("*", "?")) == r["bold"]
            walked += 1
        drawn = printed(capsys, table)
        assert all(f"{r['value']:.2f}" in drawn for r in mine)
    assert walked == len(PAPER["records"]) == 401


def test_the_run_times_are_printed(capsys):
    values = {r["value"] for r in json.loads(printed(capsys, "times", "--format", "json"))}
    entries = PAPER["run_times"]["entries"]
    assert values == {e[k] for e in entries for k in ("passes", "minutes_per_pass", "total_printed") if e.get(k)}


@pytest.mark.parametrize("form", ["table", "md", "latex", "html"])
def test_tables_1_and_2_say_that_they_are_exchanged_and_which_bold_entry_is_wrong(capsys, form):
    assert "belongs to WideResNet50" in printed(capsys, "1", "--format", form)
    text = printed(capsys, "2", "--format", form)
    assert "belongs to ResNet50" in text
    assert "63.61?" in text and "71.62*" in text
    assert [published.wrongly_bold(t) for t in published.NUMBERED if t != "2"] == [()] * 8


def test_the_averages_are_recomputed():
    claims = PAPER["average_improvement_claims"]["recomputed"]
    for table in ("1", "2", "3", "4"):
        assert published.improvement(table, published.OTHERS) == pytest.approx(
            claims["six_defences"][f"T{table}"], abs=0.005
        )
        four = claims["four_defences_AT_TRADES_IAD_RoCL"][f"T{table}"]
        assert published.improvement(table, published.IN_AVERAGE) == pytest.approx(four, abs=0.005)


def test_cells_that_rise_with_the_radius_are_listed():
    assert "MACD Jitter 72.38 -> 76.00" in published.rising("2")
    assert sum(len(published.rising(t)) for t in ("1", "2", "3", "4")) == 16


def test_a_table_or_format_that_is_not_there_is_refused_in_one_line(capsys, tmp_path):
    for arguments in (
        ["table", "10"],
        ["table", "2", "--format", "pdf"],
        ["run", "0", "--out", str(tmp_path / "runs")],
        ["run", "5", "--preset", "huge", "--out", str(tmp_path / "runs")],
        ["run", "5", "--set", "macdd.mask=false", "--out", str(tmp_path / "runs")],
        ["run", "5", "--rows", str(tmp_path / "no" / "rows.csv"), "--out", str(tmp_path / "runs")],
        ["figure", "9", "--out", str(tmp_path / "a.png"), "--store", str(tmp_path / "runs")],
        ["figure", "2", "--out", str(tmp_path / "a.txt"), "--store", str(tmp_path / "runs")],
    ):
        assert main(["paper", *arguments]) == 2
        streams = capsys.readouterr()
        assert not streams.out and len(streams.err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


# --- requests -----------------------------------------------------------------------------------


@pytest.fixture
def base(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBOBENCH_DATA", str(tmp_path))  # CIFAR is not at hand
    return ExperimentConfig(out=tmp_path / "runs", threads=1)


@pytest.fixture(scope="module")
def training_of(tmp_path_factory):
    """Resolve a request into MACD's training, each once; CIFAR is not at hand, so images are blank."""
    kept: dict[tuple[str, ...], TrainingJob] = {}
    place = tmp_path_factory.mktemp("none")

    def resolve(request: ExperimentConfig) -> TrainingJob:
        key = (request.dataset, request.model, *request.sets)
        if key not in kept:
            kept[key] = Planner(replace(request, data_dir=place), dry=True).training("macd", 0)
        return kept[key]

    return resolve


CHANGED = {  # what each table varies, by MACD's own field names
    "5": {"mae_mask_ratio"},
    "6": {"student_patch", "student_mask_ratio"},
    "7": {"attacked_images"},
    "8": {"mask"},
    "9": {"contrastive_only"},
}
VALUES = {
    "5": {(r,) for r in (0.75, 0.8, 0.85, 0.9, 0.95)},
    "6": {(ratio, patch) for ratio in (0.65, 0.7, 0.75, 0.8) for patch in (2, 4, 8, 16)},
    "7": {(True,), (False,)},
    "8": {(False,)},
    "9": {(True,)},
}


@pytest.mark.parametrize("table", CHANGED)
def test_an_ablation_changes_exactly_what_its_table_says(table, base, training_of):
    scale = Scale.load("paper")
    (main_table,) = requests("2", scale, base).values()
    original = training_of(main_table[0])
    values = set()
    for group, asked in requests(table, scale, base).items():
        assert len({(r.dataset, r.model, r.train_norm, r.epochs, r.examples) for r in asked}) == 1
        for request in asked:
            assert {s for s in request.sets if not s.startswith("run.")} == set(group.settings)
        training = training_of(asked[0])
        now, was = asdict(training.config), asdict(original.config)
        differing = {name for name in was if now[name] != was[name]}
        assert differing <= CHANGED[table]
        values.add(tuple(now[name] for name in sorted(CHANGED[table])))
        if (group.dataset, group.model) == ("CIFAR-10", "ResNet50"):
            rest = {"config": None}
            assert {**training.recipe, **rest} == {**original.recipe, **rest}
            assert (training.key == original.key) == (not differing)
    assert values == VALUES[table]


def test_ablations_of_the_student_share_one_autoencoder_and_one_attack(base, training_of):
    scale = Scale.load("paper")

    def keys(table: str, stage: Stage) -> set[str]:
        made = requests(table, scale, base).items()
        return {hash_recipe(training_of(asked[0]).stage_recipe(stage)) for g, asked in made if g.model == "ResNet50"}

    (main_table,) = requests("2", scale, base).values()
    training = training_of(main_table[0])
    model = TinyBatchNormNet()
    setup = DefenseSetup(
        model=model,
        threat=training.threat,
        config=TINY,
        num_classes=2,
        image_shape=(3, 8, 8),
        train_size=4,
        required_models={"standard": FrozenModel(TinyBatchNormNet())},
    )
    _, autoencoder, attack, distill = training.defense(TINY).stages(setup)
    for stage in (autoencoder, attack):
        assert len(keys("6", stage)) == 1
        assert len(keys("7", stage)) == 1
    assert len(keys("5", autoencoder)) == 5 and len(keys("5", attack)) == 1
    assert len(keys("6", distill)) == 16


@pytest.mark.parametrize("scale_name", ["quick", "paper"])
@pytest.mark.parametrize("table", ["2", "9"])
def test_every_number_has_a_request_under_both_protocols(table, scale_name, base):
    scale = Scale.load(scale_name)
    cells = {
        group: {
            (name, c.attack.name, c.threat.norm, c.threat.eps, p)
            for request in asked
            for c in Planner(replace(request, dataset="cifar10"), dry=True).cells
            for name in request.defenses
            for p in c.protocols
        }
        for group, asked in requests(table, scale, base).items()
        if group.model == "ResNet50" and group.dataset == "CIFAR-10"
    }
    answers = published.answers()
    for r in published.records(table):
        if r["attack"] != "none" and group_of(r, scale) in cells:
            ours, defense = answers["attacks"][r["attack"]], answers["defenses"][r["defence"]]
            eps = parse_eps(scale.eps(r["eps"]), ours["norm"])
            for protocol in ("transfer", "white-box"):
                wanted = (defense, ours[protocol], ours["norm"], eps, protocol)
                assert wanted in cells[group_of(r, scale)], r["id"]


def test_tables_1_and_2_are_run_on_the_network_their_numbers_belong_to(base):
    for table, model in (("1", "wrn50"), ("2", "resnet50")):
        (group,) = requests(table, Scale.load("paper"), base).values()
        assert {r.model for r in group} == {model}


def test_the_paper_scale_reduces_nothing_and_names_no_stand_in(base):
    scale = Scale.load("paper")
    for request in next(iter(requests("2", scale, base).values())):
        assert (request.examples, request.epochs, request.sets, request.preset) == (None, None, (), "paper")
    assert not [note for note in scale.notes([("CIFAR-10", "ResNet50")]) if "stands in" in note]


def test_what_stands_in_for_cifar_100_is_said(base):
    quick, cifar = Scale.load("quick"), Scale.load("cifar")
    assert "digits stands in for CIFAR-100" in quick.notes([("CIFAR-100", "ResNet50")])
    assert "cifar10 stands in for CIFAR-100" in cifar.notes([("CIFAR-100", "ResNet50")])
    assert {r.dataset for r in next(iter(requests("3", cifar, base).values()))} == {"cifar10"}


# --- ours beside theirs -------------------------------------------------------------------------


def rows(**changes):
    plain = {
        "defense": "macd",
        "control": False,
        "seed": 0,
        "examples": 200,
        "clean_accuracy": 0.9,
        "robust_accuracy": 0.5,
        "threat_eps": 0.05,
        "status": "ok",
        "reason": "",
        "flags": "transfer-only",
    }
    transfer = {**plain, "attack": "torchattacks-pgd", "protocol": "transfer"}
    white = {**plain, "attack": "pgd", "protocol": "white-box", "robust_accuracy": 0.01}
    return pd.DataFrame([transfer, {**white, **changes}])


def cell(found: pd.DataFrame, column: str):
    scale = Scale.load("quick")
    record = next(r for r in published.records("2") if r["defence"] == "MACD" and published.column_name(r) == column)
    group = group_of(record, scale)
    return line(record, group, {group: found}, scale)


def test_a_line_holds_both_figures_their_intervals_the_difference_and_the_flag():
    line = cell(rows(), "PGD 8/255")
    assert (line["accuracy"], line["ci_low"], line["ci_high"]) == (0.5, *wilson(100, 200))
    assert (line["white_box_accuracy"], line["white_box_ci_high"]) == (0.01, wilson(2, 200)[1])
    assert line["difference_points"] == pytest.approx(50 - 71.38)
    assert line["flags"] == "transfer-only"
    clean = cell(rows(), "clean")
    assert clean["accuracy"] == 0.9 and clean["difference_points"] == pytest.approx(90 - 93.74)
    text = as_text([line]).iloc[0]
    assert (text["paper"], text["ours [95 %]"], text["difference"]) == ("71.38", "50.0 [43.1, 56.9]", "-21.4")


def test_a_failed_cell_stays_empty_and_says_why():
    line = cell(rows(status="failed", reason="out of memory", robust_accuracy=float("nan")), "PGD 8/255")
    assert line["white_box_accuracy"] is None and line["reason"] == "out of memory"
    missing = cell(rows(), "PGD 16/255")
    assert missing["accuracy"] is None and missing["difference_points"] is None and missing["reason"] == "not run"
    assert as_text([missing]).iloc[0]["ours [95 %]"] == "-"


def test_units_of_a_stage_are_the_card_s():
    passes = {"forward": 11, "input_grad": 10, "weight_grad": 1, "teacher_forward": 0, "teacher_input_grad": 0}
    assert stage_units({"passes": passes}) == 23  # PGD-10 adversarial training: 11 F + 10 Gx + Gw of two forwards
    assert stage_units({"passes": None}) is None


def test_what_the_command_line_changed_stands_below_the_table():
    assert flags_note(ExperimentConfig()) == []
    assert flags_note(ExperimentConfig(epochs=1, sets=("pgd.steps=2",))) == [
        "changed on the command line: --epochs 1 --set pgd.steps=2"
    ]


# --- all tables in one --------------------------------------------------------------------------

MEASURED = FILE.parents[2] / "macd-paper-digits"


def measured_lines():
    """MACD's lines of tables 2 and 3: 90 % clean, 10 to 80 % under transfer, half of that white-box."""
    scale, accuracy = Scale.load("quick"), dict[str, float]()
    out = []
    for r in (r for table in "23" for r in published.records(table) if r["defence"] == "MACD"):
        group, column = group_of(r, scale), published.column_name(r)
        attacked = r["attack"] != "none"
        if attacked:
            accuracy.setdefault(column, 0.1 * (1 + len(accuracy)))
        mine = {"accuracy": accuracy[column] if attacked else 0.9}
        mine["white_box_accuracy"] = accuracy[column] / 2 if attacked else None
        out.append({**line(r, group, {group: rows()}, scale), **mine})
    return [*out, {"method": "MACD", "stage": "own", "seconds": 12.34}]


def test_all_tables_in_one_put_a_network_on_a_line_and_average_what_it_was_attacked_by():
    (line,) = summary.summary(measured_lines()).to_dict("records")
    attacked = [0.1 * n for n in range(1, 9)]
    assert (line["table"], line["row"], line["network"]) == ("2, 3", "MACD", "cnn")
    assert (line["clean, paper"], line["clean"]) == ("93.7 / 77.4", "90.0")
    theirs = [
        sum(values) / len(values)
        for table in "23"
        if (values := [r["value"] for r in published.records(table) if r["defence"] == "MACD" and r["eps"]])
    ]
    assert line["attacked, paper"] == " / ".join(f"{value:.1f}" for value in theirs)
    assert line["transfer"] == f"{100 * sum(attacked) / 8:.1f}" and line["white-box"] == f"{50 * sum(attacked) / 8:.1f}"
    assert (line["own s"], line["whole s"], line["flags"]) == ("12.3", "-", "transfer-only")


def test_a_mean_with_a_cell_missing_is_a_dash():
    lines = measured_lines()
    lines[3]["white_box_accuracy"] = None
    (line,) = summary.summary(lines).to_dict("records")
    assert line["white-box"] == "-" and line["transfer"] != "-"


def test_a_file_that_no_run_printed_is_refused(tmp_path, capsys):
    for text, said in (("", "cannot read"), ("{}", "--format json"), ('[{"value": 1}]', "--format json")):
        (tmp_path / "x.json").write_text(text)
        assert main(["paper", "summary", str(tmp_path / "x.json")]) == 2
        assert said in capsys.readouterr().err
    assert main(["paper", "summary", str(tmp_path / "none.json")]) == 2


@pytest.mark.skipif(not MEASURED.is_dir(), reason="the tables have not been measured")
def test_the_measured_tables_are_complete_stand_on_rows_and_in_the_readme():
    lines = summary.read(MEASURED / "tables.json")
    assert {line["id"] for line in lines if line.get("id")} == {r["id"] for r in PAPER["records"]}
    found = pd.read_csv(MEASURED / "rows.csv")
    of = found.groupby(["model", "defense"])
    for line in lines:
        if not line.get("id"):
            continue
        mine = of.get_group((line["model"], line["defense"]))
        assert line["accuracy"] is not None, line["id"]
        clean = line["column"] == "clean"
        assert (mine["clean_accuracy" if clean else "robust_accuracy"] - line["accuracy"]).abs().min() < 1e-9
        assert clean or (mine["robust_accuracy"] - line["white_box_accuracy"]).abs().min() < 1e-9
    readme = (MEASURED.parents[1] / "README.md").read_text()
    assert summary.one_table(lines, "md").split("\n\n")[1] in readme
