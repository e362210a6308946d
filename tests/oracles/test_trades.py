"""TRADES: both terms by hand, the KL's order and gradient paths, the start, BatchNorm, the last two epochs."""

import math

import pytest
import torch
import torch.nn.functional as F

from robobench.core.losses import kl
from robobench.core.module_state import eval_mode
from robobench.defenses.trades import TradesConfig, TradesObjective
from robobench.training.optimizer import lr_schedule
from tests.helpers.defenses import ADV, CLEAN, LABELS, THREAT, Echo, batch_of, images_of, mean_kl, skip_attack
from tests.helpers.toys import TinyBatchNormNet, color_blobs


def test_loss_equals_hand_computed_terms():
    """Both terms are means over the batch, and the KL is KL(clean || adversarial)."""
    objective = TradesObjective(Echo(), THREAT, TradesConfig())
    objective.inner_maximization = lambda batch: images_of(ADV)
    loss = objective(batch_of(images_of(CLEAN), LABELS))
    clean_loss = -(math.log(0.7) + math.log(0.5)) / 2
    robust_kl = mean_kl(CLEAN, ADV)
    assert abs(robust_kl - mean_kl(ADV, CLEAN)) > 0.01  # the case can tell the order
    assert loss.metrics["clean_loss"].item() == pytest.approx(clean_loss, rel=1e-5)
    assert loss.metrics["robust_kl"].item() == pytest.approx(robust_kl, rel=1e-5)
    assert loss.total.item() == pytest.approx(clean_loss + 6 * robust_kl, rel=1e-5)


def test_neither_side_of_kl_is_detached():
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


def test_beta_zero_gives_standard_training():
    images, labels = color_blobs(12)
    model = TinyBatchNormNet().train()
    TradesObjective(model, THREAT, TradesConfig(beta=0))(batch_of(images, labels)).total.backward()
    plain = torch.autograd.grad(F.cross_entropy(model(images), labels), list(model.parameters()))
    for parameter, gradient in zip(model.parameters(), plain, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_start_is_small_normal_and_not_clamped(monkeypatch):
    skip_attack(monkeypatch)
    objective = TradesObjective(TinyBatchNormNet(), THREAT, TradesConfig())
    images = torch.zeros(16, 3, 8, 8)
    start = objective.inner_maximization(batch_of(images, torch.zeros(16, dtype=torch.long)))
    assert start.std().item() == pytest.approx(0.001, rel=0.05)  # 3,072 draws: 1.3 % deviation
    assert start.min() < -0.001 and abs(start.mean().item()) < 1e-4


def test_gradient_at_clean_image_is_zero():
    """This is why the start is not the clean image."""
    images, _ = color_blobs(6)
    model = TinyBatchNormNet().eval()
    leaf = images.clone().requires_grad_()
    gradient = torch.autograd.grad(kl(model(images).detach(), model(leaf)).sum(), leaf)[0]
    assert gradient.abs().max() < 1e-7


def test_attack_increases_kl_in_eval_mode():
    images, labels = color_blobs(24)
    model = TinyBatchNormNet().train()
    adv = TradesObjective(model, THREAT, TradesConfig()).inner_maximization(batch_of(images, labels))
    with eval_mode(model), torch.no_grad():
        near = images + 0.001 * torch.randn_like(images)
        assert kl(model(images), model(adv)).mean() > 100 * kl(model(images), model(near)).mean()
    THREAT.check(adv, images, "trades")


@pytest.mark.parametrize(("mode", "moves"), [("eval", 2), ("train", 2 + 1 + 3)])
def test_batchnorm_updates_per_step(mode, moves):
    """Two updates per step, and more in the attack only in train mode."""
    images, labels = color_blobs(12)
    model = TinyBatchNormNet().train()
    objective = TradesObjective(model, THREAT, TradesConfig(inner_steps=3, attack_bn_mode=mode))
    objective(batch_of(images, labels))
    assert int(model.body[1].num_batches_tracked) == moves
    assert all(m.training for m in model.modules())


def test_lr_drops_for_last_two_epochs():
    config = TradesConfig()
    factor = lr_schedule(config)
    low = [epoch for epoch in range(1, config.epochs + 1) if factor(epoch - 1) < 1]
    assert low == [75, 76] and factor(74) == pytest.approx(0.1)
    assert (config.epochs, config.weight_decay, config.beta) == (76, 2e-4, 6.0)


def test_negative_beta_is_rejected():
    with pytest.raises(ValueError, match=r"beta must be >= 0, got -1"):
        TradesConfig(beta=-1)
