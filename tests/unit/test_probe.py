"""What training is told about its teachers and its epochs: the closed form of a linear network says if it is true."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import torch

import robobench
from robobench.core.threat import ThreatModel
from robobench.data import load_dataset
from robobench.errors import RequestError
from robobench.training.context import TrainRuntime
from robobench.training.selection import EpochSelection, QuickAccuracy, quick_accuracy
from tests.helpers.toys import LinearTwoClass


class Blobs:
    """Random images, labelled by a linear network, so that it is right on all when clean."""

    def __init__(self, net: LinearTwoClass, count: int) -> None:
        self.pixels = 0.2 + 0.6 * torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(1))
        self.labels = (net.gap(self.pixels) < 0).long()

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, index: torch.Tensor) -> torch.Tensor:
        return self.pixels[index]


@pytest.mark.parametrize(("norm", "eps", "dual"), [("Linf", 0.02, 1), ("L2", 0.1, 2)])
def test_a_linear_network_is_measured_as_its_closed_form(norm, eps, dual):
    net = LinearTwoClass((3, 4, 4))
    data = Blobs(net, 200)
    withstands = (net.gap(data.pixels).abs() > eps * net.w.norm(p=dual)).float().mean().item()
    assert 0.1 < withstands < 0.9
    seen = quick_accuracy(TrainRuntime("cpu", "fp32", 0), net, data, ThreatModel(norm, eps), 200, chunk=64)
    assert seen == QuickAccuracy(pytest.approx(withstands), 1.0, 200)


def test_a_probe_leaves_the_network_as_it_was():
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(16, 2)
    )
    before = {name: value.clone() for name, value in net.state_dict().items()}
    quick_accuracy(
        TrainRuntime("cpu", "fp32", 0), net.train(), Blobs(LinearTwoClass((3, 4, 4)), 8), ThreatModel("Linf", 0.1), 8
    )
    assert all(module.training for module in net.modules())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


def test_a_quarter_of_what_is_right_must_be_left_for_a_teacher_to_count_as_robust():
    assert QuickAccuracy(0.2, 0.9, 100).not_robust and not QuickAccuracy(0.25, 0.9, 100).not_robust


def test_a_network_that_is_right_as_often_as_a_guess_is_told_from_one_that_learned():
    assert (
        QuickAccuracy(0.09, 0.1, 128).guesses(10)
        and QuickAccuracy(0.0, 0.55, 128).guesses(2)
        and QuickAccuracy(0.0, 0.0, 8).guesses(10)
    )
    assert not QuickAccuracy(0.0, 0.25, 128).guesses(10) and not QuickAccuracy(0.0, 0.1, 128).guesses(100)


def test_selection_keeps_the_weights_of_the_best_epoch_of_the_second_half():
    net = LinearTwoClass((3, 4, 4))
    data = Blobs(net, 64)
    true = net.w.detach().clone()
    watch = EpochSelection(TrainRuntime("cpu", "fp32", 0), net, data, ThreatModel("Linf", 0.005), 6)
    for epoch, factor in enumerate((1.0, 1.0, 1.0, -1.0, 1.0, -1.0)):  # a flipped weight is wrong everywhere
        net.w.data = factor * true
        looked = watch.validate(epoch)
        assert bool(looked) == (epoch >= 3)
    assert torch.equal(watch.weights["w"], true)
    record = watch.record()
    assert (record["epoch"], record["last_pgd"], record["images"]) == (5, 0.0, 64) and record["best_pgd"] > 0.3


def test_held_out_images_are_the_last_and_never_trained_on():
    train = load_dataset("digits").train
    held_out = train.last(100)
    index = torch.tensor([0, 99])
    assert torch.equal(held_out.images(index), train.images(index + len(train) - 100))
    assert torch.equal(held_out.labels, train.labels[-100:]) and held_out.digest != train.digest


def test_best_and_last_epochs_are_rows_of_their_own(tmp_path):
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
    ("setting", "said"),
    [
        ("run.held_out=10", "held_out must be 0 or at least 1000, got 10"),
        ("run.held_out=1437", "leaves nothing to train on"),
        ("run.selection=best", "needs images to select on"),
        ("run.selection=first", "selection must be one of last, best, both"),
    ],
)
def test_a_selection_that_cannot_be_made_is_refused(setting, said, tmp_path):
    with pytest.raises(RequestError, match=said):
        robobench.run("at", out=tmp_path / "runs", sets=setting)
    assert not (tmp_path / "runs").exists()
