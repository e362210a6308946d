"""HAT: the three terms by hand, and helper labels from the standard model's adversarial predictions."""

import math

import pytest
import torch
from torch import nn

from robobench.defenses.hat import HATConfig, HATObjective
from robobench.training.base import FrozenModel
from tests.helpers.defenses import ADV, CLEAN, LABELS, THREAT, Echo, batch_of, images_of, mean_kl, softmax

HELPER = FrozenModel(Echo(0.0, 5.0, 0.0))  # predicts class 1


def objective_of(model: nn.Module | None = None, **changes):
    made = HATObjective(model or Echo(), THREAT, HATConfig(**changes), HELPER)
    made.inner_maximization = lambda batch: images_of(ADV)
    return made


def test_loss_equals_hand_computed_terms():
    loss = objective_of()(batch_of(images_of(CLEAN), LABELS))
    clean_loss = -(math.log(0.7) + math.log(0.5)) / 2
    robust_kl = mean_kl(CLEAN, ADV)
    # Logits x + 2 (x' - x) = 2 x' - x: probabilities proportional to p'^2 / p.
    helper = [
        softmax([2 * math.log(q) - math.log(p) for p, q in zip(*pq, strict=True)])
        for pq in zip(CLEAN, ADV, strict=True)
    ]
    helper_loss = -sum(math.log(p[1]) for p in helper) / 2
    assert loss.metrics["helper_loss"].item() == pytest.approx(helper_loss, rel=1e-5)
    assert loss.total.item() == pytest.approx(clean_loss + 2.5 * robust_kl + 0.5 * helper_loss, rel=1e-5)


def test_helper_labels_follow_helper_not_labels():
    batch = batch_of(images_of(CLEAN), LABELS)
    other = batch_of(images_of(CLEAN), 2 - LABELS)
    losses = [objective_of()(b).metrics["helper_loss"].item() for b in (batch, other)]
    assert losses[0] == losses[1]


def test_without_helper_it_is_trades():
    from robobench.defenses.trades import TradesConfig, TradesObjective

    trades = TradesObjective(Echo(), THREAT, TradesConfig(beta=2.5))
    trades.inner_maximization = lambda batch: images_of(ADV)
    batch = batch_of(images_of(CLEAN), LABELS)
    torch.testing.assert_close(objective_of(gamma=0.0)(batch).total, trades(batch).total)


def test_h_below_one_is_rejected():
    with pytest.raises(ValueError, match=r"h must be >= 1, got 0.5"):
        HATConfig(h=0.5)
