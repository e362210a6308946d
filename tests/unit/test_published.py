from __future__ import annotations

import json
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch

from robobench.cli import main
from robobench.errors import RequestError
from robobench.models.build import build_model
from robobench.models.pretrained import with_own_weights
from robobench.models.spec import ModelSpec
from robobench.planning.planner import make_plan
from robobench.planning.request import ExperimentConfig
from robobench.report.robustbench import RADII, best_known, boards, check_model_info, write_model_info
from tests.unit.test_results import record


def test_the_published_boards_hold_every_entry_and_the_known_leaders():
    boards = boards()
    assert sum(map(len, boards.values())) == 236 and len(boards["cifar10-Linf"]) == 99
    first = boards["cifar10-Linf"][0]
    assert first["id"] == "Bartoldson2024Adversarial_WRN-94-16" and best_known(first) == 73.71
    kang = next(e for e in boards["cifar10-Linf"] if e["id"] == "Kang2021Stable")
    assert best_known(kang) == 64.20  # a stronger attack found later counts, not AutoAttack's 71.28


def test_published_figures_are_shown_on_request_only(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["leaderboard", "--published", "cifar10-L2"]) == 0
    text = capsys.readouterr().out
    assert "Wang2023Better_WRN-70-16" in text and "not measured by robobench" in text and "CIFAR" not in text
    assert main(["leaderboard", "--published", "cifar10-linf"]) == 2
    assert "did you mean 'cifar10-Linf'?" in capsys.readouterr().err


def row(**more):
    base = record("aa", dataset="cifar10", eps=8 / 255, budget="standard", clean="1111")
    return {**base, "clean_accuracy": 0.8334, "robust_accuracy": 0.43205, **more}


def test_model_info_has_robustbench_s_fields_and_types_and_keeps_a_description(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(
        json.dumps({"authors": "A. Nonymous", "venue": "ICML 2030", "clean_acc": "99", "footnote": "f", "own": 1})
    )
    write_model_info([row(budget="reduced: x"), row(protocol="transfer"), row()], file)
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


def test_model_info_takes_no_figure_from_a_weaker_attack(tmp_path):
    weak = [row(budget="reduced: x"), row(threat_eps=16 / 255), row(status="failed"), row(dataset="digits")]
    with pytest.raises(RequestError, match="no row to write"):
        write_model_info(weak, tmp_path / "x.json")
    assert not (tmp_path / "x.json").exists()


FACTORY = """import torch
from torch import nn


def net(num_classes):
    torch.manual_seed(0)
    return nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(192, num_classes))
"""


def test_model_info_for_data_that_robustbench_lacks_is_refused_before_anything_is_made(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(FACTORY)
    assert main(["evaluate", "--model", "mine.py:net", "--attacks", "fgsm", "--model-info", "x.json"]) == 2
    assert "RobustBench has no board for 'digits'" in capsys.readouterr().err
    assert {p.name for p in tmp_path.iterdir()} <= {"mine.py", "__pycache__"}


@pytest.mark.parametrize(
    ("count", "said"), [(100, "of all 360 test images, not of 100; give --examples 360"), (360, None)]
)
def test_model_info_takes_all_test_images(tmp_path, monkeypatch, count, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(FACTORY)
    monkeypatch.setitem(RADII, ("digits", "Linf"), "8/255")  # as if there were a board of the embedded data
    asked = {"attacks": ("autoattack",), "eps": ("8/255",), "examples": count, "preset": "cifar"}
    plan = make_plan(ExperimentConfig(external=True, model="mine.py:net", **asked))
    with pytest.raises(RequestError, match=said) if said else nullcontext():
        check_model_info(plan)


def test_evaluating_a_user_s_factory_imports_neither_timm_nor_torchvision(tmp_path):
    (tmp_path / "mine.py").write_text(FACTORY)
    (tmp_path / "spy.py").write_text(
        "import sys\n\nfrom robobench.api import ATTACKS\nfrom robobench.attacks.fgsm import FGSM\n\n\n"
        '@ATTACKS.register("spy")\nclass Spy(FGSM):\n    """Says what is imported when it starts."""\n\n'
        "    def start(self, images, labels, noise):\n"
        "        heavy = ('timm', 'torchvision', 'torchattacks', 'sklearn', 'pandas', 'matplotlib', 'scipy')\n"
        "        print('imported:', *(name for name in heavy if name in sys.modules))\n"
        "        return super().start(images, labels, noise)\n"
    )
    command = "evaluate --model mine.py:net --attacks spy --plugin spy.py --examples 4 --threads 1 --eps 0.1 -q"
    done = subprocess.run(
        [sys.executable, "-m", "robobench", *command.split()], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].split() == ["imported:"]


def test_a_network_without_weights_of_its_own_needs_a_file(tmp_path, capsys):
    assert main(["evaluate", "--model", "cnn", "--out", str(tmp_path / "runs")]) == 2
    assert "model 'cnn' brings no weights; give a file" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_timm_s_weights_for_other_classes_are_refused():
    with pytest.raises(RequestError, match="have 1000 classes, the data set has 10"):
        with_own_weights(ModelSpec("timm:convnext_atto", 10))


def test_a_file_of_robustbench_s_weights_gives_robustbench_s_logits(tmp_path):
    pytest.importorskip("robustbench", reason="an extra")
    spec = ModelSpec("robustbench:Wong2020Fast", 10)
    net = build_model(spec).eval()
    state = {f"module.{k.removeprefix('net.')}": v for k, v in net.state_dict().items() if "mu" not in k}
    assert len(state) > 60
    torch.save({"state_dict": {k: v for k, v in state.items() if "sigma" not in k}}, tmp_path / "fast.pt")
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = net(images)
        torch.manual_seed(1)
        other = build_model(ModelSpec("robustbench:Wong2020Fast", 10, seed=1)).eval()
        assert not torch.equal(other(images), expected)
        models.load_weights(other, tmp_path / "fast.pt")
        torch.testing.assert_close(other(images), expected)
    with pytest.raises(RequestError, match="did you mean 'Wong2020Fast'"):
        build_model(ModelSpec("robustbench:Wong2020Fsat", 10))
    with pytest.raises(RequestError, match="is for cifar10, not for 100 classes"):
        build_model(ModelSpec("robustbench:Wong2020Fast", 100))
