import json
from contextlib import nullcontext
from dataclasses import replace

import pandas as pd
import pytest

from robobench.cli import main
from robobench.data.info import DATASETS
from robobench.errors import RequestError
from robobench.planning.planner import make_plan
from robobench.planning.request import ExperimentConfig
from robobench.report.leaderboard_formats import leaderboard
from robobench.report.robustbench import best_known, check_model_info, published_leaderboards, write_model_info
from tests.helpers.records import evaluation_record as record
from tests.helpers.rows import make_table_rows

FACTORY = """import torch
from torch import nn


def net(num_classes):
    torch.manual_seed(0)
    return nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(192, num_classes))
"""


def test_published_leaderboards_have_every_entry_and_known_leaders():
    found = published_leaderboards()
    assert sum(map(len, found.values())) == 236 and len(found["cifar10-Linf"]) == 99
    first = found["cifar10-Linf"][0]
    assert first["id"] == "Bartoldson2024Adversarial_WRN-94-16" and best_known(first) == 73.71
    kang = next(e for e in found["cifar10-Linf"] if e["id"] == "Kang2021Stable")
    assert best_known(kang) == 64.20  # a stronger attack found later counts, not AutoAttack's 71.28


def test_published_results_are_shown_on_request_only(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["leaderboard", "--published", "cifar10-L2"]) == 0
    text = capsys.readouterr().out
    assert "Wang2023Better_WRN-70-16" in text and "not measured by robobench" in text and "CIFAR" not in text
    assert main(["leaderboard", "--published", "cifar10-linf"]) == 2
    assert "did you mean 'cifar10-Linf'?" in capsys.readouterr().err


def test_entries_have_robustbench_keys_and_percent_strings():
    rows = make_table_rows({"at": 0.5}, ("autoattack",), (("Linf", 8 / 255),))
    (entry,) = json.loads(leaderboard(rows, "robustbench"))
    needed = "link name authors additional_data number_forward_passes dataset venue architecture eps clean_acc"
    assert set(needed.split()) | {"reported", "autoattack_acc", "external", "unreliable", "footnote"} <= set(entry)
    assert (entry["eps"], entry["clean_acc"], entry["autoattack_acc"], entry["unreliable"]) == (
        "8/255", "95.00", "50.00", False,
    )  # fmt: skip
    for order in (1, -1):  # of two budgets, the stronger result
        both = pd.concat([rows, rows.assign(attack_budget="standard", robust_accuracy=0.4)][::order])
        assert json.loads(leaderboard(both, "robustbench"))[0]["autoattack_acc"] == "40.00"
    rows["attack_budget"], rows["budget_reduced"] = "reduced: 5 steps", True
    (entry,) = json.loads(leaderboard(rows, "robustbench"))
    assert "autoattack_acc" not in entry and "reduced: 5 steps" in entry["footnote"]


# --- model_info files ---------------------------------------------------------------------------


def row(**more):
    values = {"dataset": "cifar10", "eps": 8 / 255, "attack_budget": "standard", "budget_standard": True}
    return {**record("aa", clean="1111", **values), "clean_accuracy": 0.8334, "robust_accuracy": 0.43205, **more}


WEAK = {"attack_budget": "reduced: x", "budget_reduced": True, "budget_standard": False}


def test_model_info_has_robustbench_fields_and_keeps_descriptions(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(
        json.dumps({"authors": "A. Nonymous", "venue": "ICML 2030", "clean_acc": "99", "footnote": "f", "own": 1})
    )
    write_model_info([row(**WEAK), row(protocol="transfer"), row(), row(robust_accuracy=0.6)], file)
    info = json.loads(file.read_text())
    assert list(info) == [
        "link", "name", "authors", "additional_data", "number_forward_passes", "dataset", "venue", "architecture",
        "eps", "clean_acc", "reported", "autoattack_acc", "footnote",
    ]  # fmt: skip
    assert (info["clean_acc"], info["autoattack_acc"], info["eps"]) == ("83.34", "43.20", "8/255")
    assert info["authors"] == "A. Nonymous" and info["venue"] == "ICML 2030"
    kinds = {k: bool if k == "additional_data" else int if k == "number_forward_passes" else str for k in info}
    assert all(type(info[k]) is kind for k, kind in kinds.items())
    assert json.loads(file.with_suffix(".robobench.json").read_text())["examples"] == 4


@pytest.mark.parametrize(("before", "after"), [(None, "41.00"), ("40.50", "40.50"), ("42.00", "41.00"), ("", "41.00")])
def test_model_info_keeps_lowest_external_result(tmp_path, before, after):
    """The worst case over all attacks, adaptive ones included, is below AutoAttack's 43.20."""
    file = tmp_path / "info.json"
    file.write_text(json.dumps({} if before is None else {"external": before}))
    write_model_info([row(worst_case_accuracy=0.41)], file)
    info = json.loads(file.read_text())
    assert (info["autoattack_acc"], info["external"]) == ("43.20", after)


def test_model_info_needs_standard_attack(tmp_path):
    weak = [row(**WEAK), row(threat_eps=16 / 255), row(status="failed"), row(dataset="digits")]
    with pytest.raises(RequestError, match="no row for --model-info"):
        write_model_info(weak, tmp_path / "x.json")
    assert not (tmp_path / "x.json").exists()


def test_model_info_refuses_other_datasets_first(tmp_path, capsys, monkeypatch):
    """Nothing is created."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(FACTORY)
    assert main(["evaluate", "--model", "mine.py:net", "--attacks", "fgsm", "--model-info", "x.json"]) == 2
    assert "RobustBench has no leaderboard for 'digits'" in capsys.readouterr().err
    assert {p.name for p in tmp_path.iterdir()} <= {"mine.py", "__pycache__"}


@pytest.mark.parametrize(
    ("count", "message"), [(100, "evaluates all 360 test images, not 100; use --examples 360"), (360, None)]
)
def test_model_info_needs_all_test_images(tmp_path, monkeypatch, count, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(FACTORY)
    digits = replace(DATASETS["digits"], robustbench_eps={"Linf": "8/255"})
    monkeypatch.setitem(DATASETS, "digits", digits)  # as if RobustBench had a leaderboard for it
    asked = {"attacks": ("autoattack",), "eps": ("8/255",), "examples": count, "preset": "cifar"}
    plan = make_plan(ExperimentConfig(external=True, model="mine.py:net", **asked))
    with pytest.raises(RequestError, match=message) if message else nullcontext():
        check_model_info(plan)
