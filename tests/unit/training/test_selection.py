"""Quick accuracy and epoch selection, checked against the closed form of a linear model."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

import robobench
from robobench.core.threat import ThreatModel
from robobench.data import load_dataset
from robobench.errors import RequestError
from robobench.training.selection import EpochSelection, QuickAccuracy, quick_accuracy
from tests.helpers.toys import LinearTwoClass
from tests.helpers.training import RUNTIME


class Blobs:
    """Random images with the labels that a linear model predicts, so that its clean accuracy is 1."""

    def __init__(self, net: LinearTwoClass, count: int) -> None:
        self.pixels = 0.2 + 0.6 * torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(1))
        self.labels = (net.gap(self.pixels) < 0).long()

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, index: torch.Tensor) -> torch.Tensor:
        return self.pixels[index]


@pytest.mark.parametrize(("norm", "eps", "dual"), [("Linf", 0.02, 1), ("L2", 0.1, 2)])
def test_accuracy_of_linear_model_equals_closed_form(norm, eps, dual):
    net = LinearTwoClass((3, 4, 4))
    data = Blobs(net, 200)
    robust = (net.gap(data.pixels).abs() > eps * net.w.norm(p=dual)).float().mean().item()
    assert 0.1 < robust < 0.9
    accuracy = quick_accuracy(RUNTIME, net, data, ThreatModel(norm, eps), 200, batch_size=64)
    assert accuracy == QuickAccuracy(pytest.approx(robust), 1.0, 200)


def test_quick_accuracy_does_not_change_model():
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(16, 2)
    )
    before = {name: value.clone() for name, value in net.state_dict().items()}
    quick_accuracy(RUNTIME, net.train(), Blobs(LinearTwoClass((3, 4, 4)), 8), ThreatModel("Linf", 0.1), 8)
    assert all(module.training for module in net.modules())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


def test_teacher_below_quarter_of_clean_is_not_robust():
    assert QuickAccuracy(0.2, 0.9, 100).not_robust and not QuickAccuracy(0.25, 0.9, 100).not_robust


def test_near_chance_detects_untrained_model():
    assert (
        QuickAccuracy(0.09, 0.1, 128).near_chance(10)
        and QuickAccuracy(0.0, 0.55, 128).near_chance(2)
        and QuickAccuracy(0.0, 0.0, 8).near_chance(10)
    )
    assert not QuickAccuracy(0.0, 0.25, 128).near_chance(10) and not QuickAccuracy(0.0, 0.1, 128).near_chance(100)


def test_selection_keeps_best_epoch_of_second_half():
    net = LinearTwoClass((3, 4, 4))
    data = Blobs(net, 64)
    true = net.w.detach().clone()
    selection = EpochSelection(RUNTIME, lambda: net, data, ThreatModel("Linf", 0.005), 6)
    for epoch, factor in enumerate((1.0, 1.0, 1.0, -1.0, 1.0, -1.0)):  # a flipped weight is wrong everywhere
        net.w.data = factor * true
        metrics = selection.validate(epoch)
        assert ("held_out_pgd" in metrics) == (epoch >= 3)
    assert torch.equal(selection.weights["w"], true)
    record = selection.record()
    assert (record["epoch"], record["last_pgd"], record["images"]) == (5, 0.0, 64) and record["best_pgd"] > 0.3


def test_training_without_any_robustness_is_reported():
    net, said = LinearTwoClass((3, 4, 4)), []
    runtime = replace(RUNTIME, reporter=SimpleNamespace(warning=said.append))
    selection = EpochSelection(runtime, lambda: net, Blobs(net, 64), ThreatModel("Linf", 0.9), 10)
    assert [bool(selection.validate(epoch)) for epoch in range(5)] == [False, True, False, False, False]
    assert len(said) == 1 and "after epoch 2 of 10 the model is not robust at all" in said[0]


def test_held_out_images_are_the_last_ones():
    train = load_dataset("digits").train
    held_out = train.last(100)
    index = torch.tensor([0, 99])
    assert torch.equal(held_out.images(index), train.images(index + len(train) - 100))
    assert torch.equal(held_out.labels, train.labels[-100:]) and held_out.digest != train.digest


def test_best_and_last_epoch_have_separate_rows(tmp_path):
    flags = {"attacks": "fgsm", "eps": "0.1", "protocol": "white-box", "threads": 1, "examples": 64, "epochs": 3}
    sets = ("run.held_out=1000", "run.selection=both", "run.baseline_control=false", "at.inner_steps=1")
    rows = robobench.run("at", out=tmp_path, sets=sets, **flags)
    assert list(rows["selection"]) == ["best", "last"] and set(rows["status"]) == {"ok"}
    (folder,) = tmp_path.glob("at-*")
    metrics = pd.read_csv(folder / "metrics.csv", converters={"value": float})  # pandas rounds
    epochs = metrics[metrics["metric"] == "held_out_pgd"]
    assert list(epochs["epoch"]) == [1, 2]  # the second half, counted from 0
    timing = json.loads((folder / "timing.json").read_text())
    assert timing["selection"]["best_pgd"] == epochs["value"].max()
    assert timing["selection"]["last_pgd"] == epochs["value"].iloc[-1]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("run.held_out=10", "held_out must be 0 or at least 1000, got 10"),
        ("run.held_out=1437", "leaves nothing to train on"),
        ("run.selection=best", "needs images to select on"),
        ("run.selection=first", "selection must be one of last, best, average, best-average, both, all"),
    ],
)
def test_impossible_selection_is_rejected(setting, message, tmp_path):
    with pytest.raises(RequestError, match=message):
        robobench.run("at", out=tmp_path / "runs", sets=setting)
    assert not (tmp_path / "runs").exists()
