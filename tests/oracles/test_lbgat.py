"""LBGAT: squared distance of logits by hand, and a guide that is trained but is not the result."""

import math

import pytest
import torch

from robobench.defenses.lbgat import LBGAT, LBGATConfig, LBGATObjective
from tests.helpers.defenses import ADV, CLEAN, LABELS, THREAT, Echo, batch_of, images_of, mean_kl, setup_of
from tests.helpers.toys import TinyBatchNormNet, color_blobs


@pytest.mark.parametrize("beta", [0.0, 6.0])
def test_loss_equals_hand_computed_terms(beta):
    objective = LBGATObjective(Echo(), THREAT, LBGATConfig(beta=beta))
    objective.inner_maximization = lambda batch: images_of(ADV)
    loss = objective(batch_of(images_of(CLEAN), LABELS))
    squares = [
        (math.log(q) - math.log(p)) ** 2 for a, b in zip(CLEAN, ADV, strict=True) for p, q in zip(a, b, strict=True)
    ]
    guide_loss = -(math.log(0.7) + math.log(0.5)) / 2
    expected = sum(squares) / 6 + guide_loss + beta * mean_kl(CLEAN, ADV)
    assert loss.total.item() == pytest.approx(expected, rel=1e-5)
    assert ("robust_kl" in loss.metrics) == (beta > 0)


def test_guide_learns_and_model_follows():
    images, labels = color_blobs(12)
    model = TinyBatchNormNet().train()
    (stage,) = LBGAT(LBGATConfig(inner_steps=2)).stages(setup_of(model))
    optimizer = stage.optimizer(stage.objective)
    start = [p.clone() for p in stage.objective.guide.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(start, model.parameters(), strict=True))
    stage.objective(batch_of(images, labels)).total.backward()
    assert all(p.grad is not None for p in stage.objective.parameters())
    optimizer.step()
    assert not torch.equal(next(stage.objective.guide.parameters()), start[0])
    assert not torch.equal(next(model.parameters()), next(stage.objective.guide.parameters()))


def test_attack_leaves_guide_unused(monkeypatch):
    images, labels = color_blobs(6)
    objective = LBGATObjective(TinyBatchNormNet(), THREAT, LBGATConfig(inner_steps=2))
    monkeypatch.setattr(objective.guide, "forward", None)
    THREAT.check(objective.inner_maximization(batch_of(images, labels)), images, "lbgat")
