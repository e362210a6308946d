"""Minimum-norm attacks and the curves they give, on problems with known distances."""

import math
from typing import Any

import pytest
import torch

import robobench
from robobench.core.rng import KeyedRng
from robobench.core.threat import ThreatModel
from robobench.errors import RequestError
from robobench.evaluation.distances import Distances
from robobench.plugins.discovery import load_attack
from tests.helpers.toys import LinearTwoClass

SHAPE = (3, 6, 6)
DUAL = {"Linf": 1, "L2": 2}


@pytest.mark.parametrize(("name", "norm"), [("fmn", "Linf"), ("fmn", "L2"), ("ddn", "L2"), ("fab-t", "L2")])
def test_distance_to_linear_boundary_is_closed_form(name, norm):
    model = LinearTwoClass(SHAPE).eval().requires_grad_(False)
    images = 0.4 + 0.2 * torch.rand(6, *SHAPE)
    labels = (model.gap(images) < 0).long()
    labels[0] = 1 - labels[0]  # misclassified when clean
    found = robobench.distances(model, images, labels, attack=name, norm=norm)
    closest = model.gap(images).abs().double() / model.w.norm(DUAL[norm])
    assert found.values[0] == 0 and torch.equal(found.adversarial[0], images[0])
    ratio = found.values[1:] / closest[1:]
    assert (ratio >= 1 - 1e-4).all() and (ratio <= 1.06).all()
    assert (model(found.adversarial).argmax(1) != labels).all()


def test_fewest_changes_of_linear_model_are_closed_form():
    """Each value moves to 0 or 1, in the order of what it adds to the logit gap, until the gap is closed."""
    torch.manual_seed(0)
    model = LinearTwoClass(SHAPE).eval().requires_grad_(False)
    images = torch.rand(12, *SHAPE)
    labels = (model.gap(images) < 0).long()
    up = (model.w > 0) == (labels[:, None] == 1)
    gain = torch.where(up, 1 - images.flatten(1), images.flatten(1)) * model.w.abs()
    closed = gain.sort(1, descending=True).values.cumsum(1)
    fewest = (closed <= model.gap(images).abs()[:, None]).sum(1) + 1
    labels[1], fewest[1] = 1 - labels[1], 0  # misclassified when clean
    found = robobench.distances(model, images, labels, attack="sigma-zero", norm="L0", sets=("sigma-zero.steps=100",))
    assert torch.equal(found.adversarial[1], images[1])
    assert fewest.max() == 6 and found.values.tolist() == fewest.tolist()
    changed = (found.adversarial != images).flatten(1).sum(1)
    assert torch.equal(found.values, changed.double())
    assert found.adversarial.min() >= 0 and found.adversarial.max() <= 1
    assert (model(found.adversarial).argmax(1) != labels).all()
    curve = found.curve()
    assert curve["eps"].tolist() == [round(eps) for eps in curve["eps"]] and curve["robust_accuracy"].iloc[-1] == 0
    assert curve["robust_accuracy"].is_monotonic_decreasing


@pytest.mark.parametrize(("name", "norm"), [("fmn", "L2"), ("ddn", "L2"), ("sigma-zero", "L0")])
def test_success_at_eps_agrees_with_distance(digits_net, digits, name, norm):
    """The path of a minimum-norm attack does not depend on eps, so one run answers every radius."""
    images, labels = digits[0][1000:1020], digits[1][1000:1020]
    correct = digits_net(images).argmax(1) == labels
    images, labels = images[correct], labels[correct]
    found = robobench.distances(digits_net, images, labels, attack=name, norm=norm, sets=(f"{name}.steps=40",))
    assert found.values.isfinite().all()
    for eps in (1, 3, 6) if norm == "L0" else (0.3, 0.6, 0.9):
        cls = load_attack(name)
        attack, rng = cls(cls.Config(steps=40), ThreatModel(norm, eps)), KeyedRng.of(torch.arange(len(labels)), name)
        success = attack.attack_early_stop(digits_net, images, labels, rng).success
        assert torch.equal(success, found.values <= eps)
        assert found.curve([eps])["robust_accuracy"].iloc[0] == float((~success).double().mean())


def test_distance_is_no_larger_than_pgds(digits_net, digits):
    """Where PGD succeeds in a ball, FMN finds an example at most a little farther than its radius."""
    images, labels = digits[0][1000:1020], digits[1][1000:1020]
    found = robobench.distances(digits_net, images, labels)
    flags: Any = {"images": images, "labels": labels, "norm": "L2", "eps": 0.6, "attacks": "pgd"}
    success = ~robobench.evaluate(model=digits_net, **flags).outcomes["pgd", 0.6, "white-box"]
    assert (found.values[success] <= 0.6 * 1.05).all()


def test_curve_by_hand():
    found = Distances("fmn", "L2", torch.tensor([0.0, 0.5, 1.0, math.inf], dtype=torch.float64), torch.empty(0))
    curve = found.curve([0.0, 0.4, 0.5, 1.0, 9.0])
    assert curve["robust_accuracy"].tolist() == [0.75, 0.75, 0.5, 0.25, 0.25]
    assert curve["ci_low"].iloc[2] == pytest.approx(0.15, abs=0.001)  # Wilson, 2 of 4
    assert found.curve()["eps"].iloc[-1] == 1.0 and len(found.curve()) == 21
    assert found.median == 1.0


def test_other_attacks_find_no_distance(digits_net, digits):
    with pytest.raises(RequestError, match="attack 'pgd' finds no distances; use fmn"):
        robobench.distances(digits_net, digits[0][:2], digits[1][:2], attack="pgd")
    with pytest.raises(RequestError, match="attack 'ddn' has no Linf form"):
        robobench.distances(digits_net, digits[0][:2], digits[1][:2], attack="ddn", norm="Linf")
    with pytest.raises(RequestError, match="attack 'fmn' has no L0 form"):
        robobench.distances(digits_net, digits[0][:2], digits[1][:2], norm=0)
    with pytest.raises(RequestError, match="attack 'sigma-zero' has no L2 form; it has L0"):
        robobench.distances(digits_net, digits[0][:2], digits[1][:2], attack="sigma-zero")
