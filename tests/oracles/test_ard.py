"""ARD: the loss by hand at a temperature, and the start of its attack."""

import math

import pytest
import torch

from robobench.defenses.ard import ARDConfig, ARDObjective
from robobench.training.base import FrozenModel
from robobench.training.optimizer import lr_schedule
from tests.helpers.defenses import (
    ADV,
    CLEAN,
    LABELS,
    THREAT,
    Echo,
    batch_of,
    echo_probs,
    images_of,
    mean_kl,
    skip_attack,
)
from tests.helpers.toys import TinyBatchNormNet

BIAS = (0.0, 2.0, 0.5)
TEACHER = FrozenModel(Echo(*BIAS))


@pytest.mark.parametrize("alpha", [1.0, 0.4])
def test_loss_equals_hand_computed_terms(alpha):
    objective = ARDObjective(Echo(), THREAT, ARDConfig(temperature=3.0, alpha=alpha), TEACHER)
    objective.inner_maximization = lambda batch: images_of(ADV)
    loss = objective(batch_of(images_of(CLEAN), LABELS))
    distance = mean_kl(echo_probs(BIAS, CLEAN, 3.0), echo_probs((0, 0, 0), ADV, 3.0))
    clean_loss = -(math.log(0.7) + math.log(0.5)) / 2
    expected = alpha * 9 * distance / 3 + (1 - alpha) * clean_loss
    assert loss.total.item() == pytest.approx(expected, rel=1e-4)


def test_start_is_uniform_and_not_clamped(monkeypatch):
    skip_attack(monkeypatch)
    objective = ARDObjective(TinyBatchNormNet(), THREAT, ARDConfig(), TEACHER)
    start = objective.inner_maximization(batch_of(torch.ones(16, 3, 8, 8), torch.zeros(16).long()))
    assert 1.05 < start.max() <= 1.1 + 1e-6
    assert (start - 1).abs().mean().item() == pytest.approx(0.05, abs=0.003)


def test_lr_drops_once():
    factor = lr_schedule(ARDConfig())
    assert [factor(e) for e in (99, 100, 199)] == pytest.approx([1, 0.1, 0.1])
