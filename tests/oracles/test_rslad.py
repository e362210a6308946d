"""RSLAD: both terms by hand, and an attack that follows the teacher's clean predictions."""

import math

import pytest
import torch

from robobench.core.losses import kl, soft_label_kl
from robobench.core.module_state import eval_mode
from robobench.defenses.rslad import RSLADConfig, RSLADObjective
from robobench.training.base import FrozenModel
from tests.helpers.defenses import ADV, CLEAN, LABELS, THREAT, Echo, batch_of, echo_probs, images_of
from tests.helpers.toys import TinyBatchNormNet, color_blobs

BIAS = (0.0, 2.0, 0.5)


def shifted_kl(ps, qs):
    terms = [
        a * (math.log(a + 1e-5) - math.log(b)) for p, q in zip(ps, qs, strict=True) for a, b in zip(p, q, strict=True)
    ]
    return sum(terms) / len(ps) / 10


def test_loss_equals_hand_computed_terms():
    objective = RSLADObjective(Echo(), THREAT, RSLADConfig(), FrozenModel(Echo(*BIAS)))
    objective.inner_maximization = lambda batch, target: images_of(ADV)
    loss = objective(batch_of(images_of(CLEAN), LABELS))
    target = echo_probs(BIAS, CLEAN)
    assert loss.metrics["adv_loss"].item() == pytest.approx(shifted_kl(target, ADV), rel=1e-5)
    assert loss.total.item() == pytest.approx(
        5 / 6 * shifted_kl(target, ADV) + 1 / 6 * shifted_kl(target, CLEAN), rel=1e-5
    )


def test_soft_label_kl_is_almost_kl():
    target, logits = torch.randn(6, 10), torch.randn(6, 10)
    torch.testing.assert_close(soft_label_kl(target.softmax(1), logits), kl(target, logits), rtol=0, atol=1.1e-4)


def test_attack_increases_kl_to_teacher_and_ignores_labels():
    images, labels = color_blobs(24)
    model, target = TinyBatchNormNet().train(), 3 * torch.randn(24, 3)
    objective = RSLADObjective(model, THREAT, RSLADConfig(), FrozenModel(TinyBatchNormNet()))
    adv = objective.inner_maximization(batch_of(images, labels), target)
    with eval_mode(model), torch.no_grad():
        assert (kl(target, model(adv)) > kl(target, model(images))).float().mean() > 0.9
    assert torch.equal(adv, objective.inner_maximization(batch_of(images, 0 * labels), target))
