"""Every wrong request: exit status 2, one line that names the value and the next move, nothing created."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from robobench.cli import main


@pytest.fixture
def refused(capsys, tmp_path, monkeypatch):
    """Run a command line in an empty folder and return its one line on stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, keeps: tuple[str, ...] = ()) -> str:
        before = {p.name for p in tmp_path.iterdir()}
        status = main(list(arguments))
        captured = capsys.readouterr()
        assert status == 2, captured.err
        assert {p.name for p in tmp_path.iterdir()} == before, "a refused request created something"
        lines = captured.err.strip().splitlines()
        assert len(lines) == 1, captured.err
        assert "Traceback" not in captured.err
        return lines[0]

    return run


BEST = ["--set", "run.selection=best", "--set", "run.held_out=1000"]
UNTRAINED = ["--model", "cnn", "--set", "run.pretrained=true"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--defense", "trade"], "unknown defense 'trade'; did you mean 'trades'?"),
        (["run", "--defense", "standard", "--attacks", "pdg"], "unknown attack 'pdg'; did you mean 'pgd'?"),
        (["run", "--defense", "standard", "--model", "wrn5"], "unknown model 'wrn5'; did you mean 'wrn50'?"),
        (["run", "--defense", "standard", "--dataset", "digit"], "unknown data set 'digit'; did you mean 'digits'?"),
        (["run", "--defense", "standard", "--preset", "quik"], "unknown preset 'quik'; did you mean 'quick'?"),
        (["run", "--defense", "standard", "--norm", "L3"], "unknown norm 'L3'"),
        (["run", "--defense", "standard", "--protocol", "grey"], "unknown protocol 'grey'"),
        (["run", "--defense", "standard", "--eps", "8"], "did you mean 8/255?"),
        (["run", "--defense", "standard", "--eps", "-0.1"], "eps must be a finite number >= 0, got -0.1"),
        (["run", "--defense", "standard", "--eps", "8/0"], "eps '8/0' is not a number"),
        (["run", "--defense", "standard", "--eps", "nan"], "nan"),
        (["run", "--defense", "standard", "--eps", "0"], "eps 0 leaves nothing to attack"),
        (["run", "--defense", "at", "--train-eps", "0"], "--train-eps 0"),
        (["run", "--defense", "macd", "--set", "macd.student_patch=3"], "defense 'macd'"),
        (["run", "--defense", "macd", "--set", "macd.student_patch=3", "--dry-run"], "defense 'macd'"),
        (["run", "--defense", "macd", "--set", "macd.student_mask_ratio=0.999"], "keeps 0 of 256 patches"),
        (["run", "--defense", "at", *BEST, "--epochs", "0"], "nothing to choose from in 0 epochs"),
        (["run", "--defense", "trades", "--set", "trades.bta=3"], "did you mean 'beta'?"),
        (["run", "--defense", "trades", "--set", "trades.beta=much"], "trades.beta takes a value of type float"),
        (["run", "--defense", "trades", "--set", "trades.beta=-1"], "trades: beta must be >= 0"),
        (["run", "--defense", "trades", "--set", "tradse.beta=1"], "did you mean 'trades'?"),
        (["run", "--defense", "trades", "--set", "beta"], "is not NAME.FIELD=VALUE"),
        (["run", "--defense", "standard", "--norm", "L2", "--attacks", "jitter"], "has no L2 form"),
        (["run", "--defense", "standard", "--device", "tpu"], "unknown device 'tpu'"),
        (["run", "--defense", "standard", "--precision", "fp8"], "unknown precision 'fp8'"),
        (["run", "--defense", "standard", "--compile", "yes"], "unknown --compile 'yes'; known: auto, on, off"),
        (["run", "--defense", "standard", "--examples", "0"], "--examples must be at least 1"),
        (["run", "--defense", "at", *UNTRAINED], "model 'cnn' has no pretrained weights; resnet18, resnet50"),
        (["run", "--defense", "at", *UNTRAINED, "--dry-run"], "--set run.pretrained=false"),
        (
            ["run", "--defense", "standard", "--set", "run.eval_batch_size=0"],
            "run: eval_batch_size must be at least 1, got 0",
        ),
        (["run", "--defense", "standard", "--set", "run.examples=-3"], "run: examples must be at least 0, got -3"),
        (["run", "--defense", "standard", "--set", "run.train_images=-1"], "run: train_images must be at least 0"),
        (["run", "--defense", "standard", "--seeds", "a,b"], "is not a list of whole numbers"),
        (["run", "--defense", "standard", "--epochs", "-3"], "--epochs must be at least 0"),
        (["run", "--defense", "standard", "--out", "/dev/null/x"], "cannot be written"),
        (["run", "--defense", "standard", "--plugin", "nowhere.py"], "no plug-in file 'nowhere.py'"),
        (["run", "--defense", "standard", "--plugin", "no\0where"], "no plug-in file"),
        (["run"], "--defense"),
        (["runs"], "runs"),
        (["list", "defences"], "did you mean 'defenses'?"),
        (["leaderboard", "--out", "nowhere"], "no rows in 'nowhere'"),
        (["leaderboard", "--format", "xls"], "unknown format 'xls'; known: csv"),
        (["evaluate", "none.pt", "--model", "cnn"], "no weights file 'none.pt'"),
        (["check", "tradse"], "did you mean 'trades'?"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_request_is_refused_in_one_line(refused, arguments, said):
    assert said in refused(*arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_missing_gpu_is_refused(refused):
    assert "use --device cpu" in refused("run", "--defense", "standard", "--device", "cuda")


def test_unreadable_weights_are_refused(refused, tmp_path):
    (tmp_path / "w.pt").write_text("hello")
    assert "cannot read weights" in refused("evaluate", "w.pt", "--model", "cnn")


def test_wrong_class_count_names_both_numbers(refused, tmp_path):
    from robobench.models.build import build_model
    from robobench.models.spec import ModelSpec

    model = build_model(ModelSpec("cnn", 7))
    torch.save(model.state_dict(), tmp_path / "seven.pt")
    line = refused("evaluate", "seven.pt", "--model", "cnn")
    assert "7 classes" in line and "10" in line


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (np.zeros((0, 8, 8, 3), np.uint8), np.zeros(0, np.int64), "empty"),
        (np.full((4, 8, 8, 3), 2.0, np.float32), np.arange(4) % 2, "[0, 1]"),
        (np.full((4, 8, 8, 3), np.nan, np.float32), np.arange(4) % 2, "[0, 1]"),
        (np.zeros((4, 8, 8, 3), np.uint8), np.array([0, 1, -1, 0]), "-1"),
        (np.zeros((4, 8, 8, 3), np.uint8), np.zeros(4, np.int64), "class"),
    ],
    ids=["empty", "above one", "not a number", "negative label", "one class"],
)
def test_unusable_data_are_refused(refused, tmp_path, images, labels, said):
    np.savez(tmp_path / "d.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    assert said in refused("run", "--defense", "standard", "--dataset", "npz:d.npz", "--preset", "quick")


def test_damaged_archive_is_refused(refused, tmp_path):
    (tmp_path / "d.npz").write_bytes(b"PK\x03\x04 not really")
    assert "d.npz" in refused("run", "--defense", "standard", "--dataset", "npz:d.npz", "--preset", "quick")


def test_broken_plugin_stops_only_its_own_run(refused, tmp_path, capsys):
    (tmp_path / "bad.py").write_text(
        "from robobench.api import ATTACKS, Attack\nimport no_such_module\n\n"
        '@ATTACKS.register("bad")\nclass Bad(Attack):\n    """A bad one."""\n'
    )
    assert main(["list", "attacks", "--check", "--plugin", "bad.py"]) == 1
    assert "no_such_module" in capsys.readouterr().out
    line = refused("run", "--defense", "standard", "--attacks", "bad", "--plugin", "bad.py")
    assert "no_such_module" in line


def test_model_with_inconsistent_head_is_refused(refused, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Module):\n    def __init__(self, k):\n        super().__init__()\n"
        "        self.head = nn.Linear(3, k)\n\n    def features(self, images):\n        return images.mean((2, 3))\n\n"
        "    def forward(self, images):\n        return self.head(self.features(images).sqrt())\n"
    )
    assert "head(features(images)) and model(images) differ" in refused(
        "run", "--defense", "rocl", "--model", "net.py:Net"
    )
