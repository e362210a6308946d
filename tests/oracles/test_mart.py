"""MART: both terms by hand, with the gradient through the weight of the KL."""

import math

import pytest
import torch

from robobench.defenses.mart import MARTConfig, MARTObjective
from robobench.training.optimizer import lr_schedule
from tests.helpers.defenses import ADV, CLEAN, LABELS, THREAT, Echo, batch_of, images_of, kl_by_hand


def objective_of(model):
    objective = MARTObjective(model, THREAT, MARTConfig())
    objective.inner_maximization = lambda batch: images_of(ADV)
    return objective


def test_loss_equals_hand_computed_terms():
    loss = objective_of(Echo())(batch_of(images_of(CLEAN), LABELS))
    # True classes 0 and 2; the largest wrong probabilities under attack are 0.4 and 0.6.
    boosted = -(math.log(0.3) + math.log(0.6001) + math.log(0.1) + math.log(0.4001)) / 2
    weighted = sum((1 - p[y]) * kl_by_hand(p, q) for p, q, y in zip(CLEAN, ADV, LABELS.tolist(), strict=True)) / 2
    assert loss.metrics["boosted_loss"].item() == pytest.approx(boosted, rel=1e-5)
    assert loss.metrics["weighted_kl"].item() == pytest.approx(weighted, rel=1e-5)
    assert loss.total.item() == pytest.approx(boosted + 5 * weighted, rel=1e-5)


def test_weight_and_both_predictions_have_gradient():
    """A central difference of the whole loss equals its gradient: nothing is detached."""
    model = Echo().double()
    batch = batch_of(images_of(CLEAN).double(), LABELS)
    objective_of(model)(batch).total.backward()
    for k in range(3):
        shifted = []
        for sign in (1, -1):
            other = Echo().double()
            other.scale.data[k] += sign * 1e-6
            shifted.append(objective_of(other)(batch).total.item())
        assert model.scale.grad[k].item() == pytest.approx((shifted[0] - shifted[1]) / 2e-6, rel=1e-6)


def test_lr_drops_at_epochs_75_90_and_100():
    config = MARTConfig()
    factor = lr_schedule(config)
    assert [factor(epoch - 1) for epoch in (74, 75, 90, 100)] == pytest.approx([1, 0.1, 0.01, 0.001])
    assert (config.lr, config.weight_decay, config.beta) == (0.01, 3.5e-3, 5.0)


def test_negative_beta_is_rejected():
    with pytest.raises(ValueError, match=r"beta must be >= 0, got -1"):
        MARTConfig(beta=-1)
    assert torch.isfinite(objective_of(Echo())(batch_of(images_of(CLEAN), LABELS)).total)
