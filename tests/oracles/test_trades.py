"""TRADES: both terms by hand, the KL's order and gradient paths, the start, BatchNorm, the last two epochs."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robobench.core.losses import kl
from robobench.core.module_state import eval_mode
from robobench.core.rng import KeyedRng
from robobench.core.threat import ThreatModel
from robobench.defenses.trades import TradesConfig, TradesObjective
from robobench.training.base import Batch, lr_schedule
from robobench.training.inner_maximization import AdvTrainConfig
from tests.helpers.toys import TinyBatchNormNet, color_blobs

THREAT = ThreatModel("Linf", 0.1)
CLEAN, ADV = [[0.7, 0.2, 0.1], [0.2, 0.3, 0.5]], [[0.3, 0.3, 0.4], [0.6, 0.3, 0.1]]
LABELS = torch.tensor([0, 2])


class Echo(nn.Module):
    """The images are the logits, times a weight to differentiate by."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, images):
        return images.flatten(1) * self.scale


def images_of(probs):
    return torch.tensor(probs).log().view(len(probs), -1, 1, 1)


def divergence(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def batch_of(images, labels):
    index = torch.arange(len(images))
    return Batch(images, labels, index, 0, KeyedRng.of(index, "test"))


def test_both_terms_are_means_over_the_batch_and_the_kl_runs_from_clean_to_attacked():
    objective = TradesObjective(Echo(), THREAT, TradesConfig())
    objective.inner_maximization = lambda batch: images_of(ADV)
    loss = objective(batch_of(images_of(CLEAN), LABELS))
    clean_loss = -(math.log(0.7) + math.log(0.5)) / 2
    robust_kl = sum(divergence(p, q) for p, q in zip(CLEAN, ADV, strict=True)) / 2
    exchanged = sum(divergence(q, p) for p, q in zip(CLEAN, ADV, strict=True)) / 2
    assert abs(robust_kl - exchanged) > 0.01  # the case can tell the order
    assert loss.metrics["clean_loss"].item() == pytest.approx(clean_loss, rel=1e-5)
    assert loss.metrics["robust_kl"].item() == pytest.approx(robust_kl, rel=1e-5)
    assert loss.total.item() == pytest.approx(clean_loss + 6 * robust_kl, rel=1e-5)


def test_neither_side_of_the_kl_is_detached():
    model = Echo()
    objective = TradesObjective(model, THREAT, TradesConfig())
    objective.inner_maximization = lambda batch: images_of(ADV)
    objective(batch_of(images_of(CLEAN), LABELS)).total.backward()

    def gradient(detach):
        clean, adv = model(images_of(CLEAN)), model(images_of(ADV))
        total = F.cross_entropy(clean, LABELS) + 6 * kl(clean.detach() if detach else clean, adv).mean()
        return torch.autograd.grad(total, model.scale)[0]

    torch.testing.assert_close(model.scale.grad, gradient(detach=False))
    assert (model.scale.grad - gradient(detach=True)).abs().max() > 0.1


def test_beta_zero_gives_plain_training():
    images, labels = color_blobs(12)
    model = TinyBatchNormNet().train()
    TradesObjective(model, THREAT, TradesConfig(beta=0))(batch_of(images, labels)).total.backward()
    plain = torch.autograd.grad(F.cross_entropy(model(images), labels), list(model.parameters()))
    for parameter, gradient in zip(model.parameters(), plain, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_the_start_is_a_thousandth_of_a_normal_and_not_clamped(monkeypatch):
    monkeypatch.setattr(AdvTrainConfig, "ascend", lambda self, objective, start, *rest: start)
    objective = TradesObjective(TinyBatchNormNet(), THREAT, TradesConfig())
    images = torch.zeros(16, 3, 8, 8)
    start = objective.inner_maximization(batch_of(images, torch.zeros(16, dtype=torch.long)))
    assert start.std().item() == pytest.approx(0.001, rel=0.05)  # 3,072 draws: 1.3 % deviation
    assert start.min() < -0.001 and abs(start.mean().item()) < 1e-4


def test_at_the_image_itself_the_gradient_is_zero_so_the_start_stands_beside_it():
    images, _ = color_blobs(6)
    model = TinyBatchNormNet().eval()
    leaf = images.clone().requires_grad_()
    gradient = torch.autograd.grad(kl(model(images).detach(), model(leaf)).sum(), leaf)[0]
    assert gradient.abs().max() < 1e-7


def test_the_attack_raises_the_kl_from_the_predictions_in_eval_mode():
    images, labels = color_blobs(24)
    model = TinyBatchNormNet().train()
    adv = TradesObjective(model, THREAT, TradesConfig()).inner_maximization(batch_of(images, labels))
    with eval_mode(model), torch.no_grad():
        near = images + 0.001 * torch.randn_like(images)
        assert kl(model(images), model(adv)).mean() > 100 * kl(model(images), model(near)).mean()
    THREAT.check(adv, images, "trades")


@pytest.mark.parametrize(("mode", "moves"), [("eval", 2), ("train", 2 + 1 + 3)])
def test_batchnorm_moves_twice_in_a_step_and_in_the_attack_only_in_train_mode(mode, moves):
    images, labels = color_blobs(12)
    model = TinyBatchNormNet().train()
    objective = TradesObjective(model, THREAT, TradesConfig(inner_steps=3, attack_bn_mode=mode))
    objective(batch_of(images, labels))
    assert int(model.body[1].num_batches_tracked) == moves
    assert all(m.training for m in model.modules())


def test_the_learning_rate_falls_for_epochs_75_and_76_counted_from_1():
    config = TradesConfig()
    factor = lr_schedule(config)
    low = [epoch for epoch in range(1, config.epochs + 1) if factor(epoch - 1) < 1]
    assert low == [75, 76] and factor(74) == pytest.approx(0.1)
    assert (config.epochs, config.weight_decay, config.beta) == (76, 2e-4, 6.0)


def test_a_negative_beta_is_refused():
    with pytest.raises(ValueError, match=r"beta must be >= 0, got -1"):
        TradesConfig(beta=-1)
