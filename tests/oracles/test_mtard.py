"""MTARD: both losses by hand, the self-balancing weights, the state in checkpoints, the teachers' inputs."""

import math

import pytest
import torch
import torch.nn.functional as F

from robobench.defenses.mtard import MTARDConfig, MTARDObjective, distillation
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
    frozen_models,
    images_of,
    skip_attack,
)
from tests.helpers.toys import TinyBatchNormNet, color_blobs

TEACHERS = {"robust": FrozenModel(Echo(0.0, 0.5, 1.0)), "clean": FrozenModel(Echo(1.0, 0.0, -1.0))}


def clean_batch():
    return batch_of(images_of(CLEAN), LABELS)


def objective_of(**changes):
    made = MTARDObjective(Echo(), THREAT, MTARDConfig(**changes), TEACHERS)
    made.inner_maximization = lambda batch: images_of(ADV)
    return made


def by_hand(role, probs):
    """KL / 10 with 1e-5 in the target's logarithm, over two samples."""
    total = 0.0
    for row, target in zip(probs, echo_probs(TEACHERS[role].module.bias.tolist(), probs), strict=True):
        total += sum(t * (math.log(t + 1e-5) - math.log(s)) for t, s in zip(target, row, strict=True))
    return total / (2 * 10)


def test_each_teacher_gets_its_images():
    """The robust teacher gets adversarial examples, the clean teacher clean images."""
    loss = objective_of()(clean_batch())
    assert loss.metrics["adv_loss"].item() == pytest.approx(by_hand("robust", ADV), rel=1e-5)
    assert loss.metrics["clean_loss"].item() == pytest.approx(by_hand("clean", CLEAN), rel=1e-5)
    assert abs(by_hand("clean", ADV) - by_hand("robust", ADV)) > 0.01  # the case can tell the teachers
    # The first mini-batch has r = 1 for both, so the weights stay.
    total = 0.5 * by_hand("robust", ADV) + 0.5 * by_hand("clean", CLEAN)
    assert loss.total.item() == pytest.approx(total, rel=1e-5)


def test_small_constant_is_only_in_target_logarithm():
    target, logits = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 80.0]])  # p_S underflows beside 1e-5
    assert distillation(target, logits).item() == pytest.approx((math.log(1 + 1e-5) + 80) / 10, rel=1e-5)


def test_loss_is_not_symmetric():
    p, q = torch.tensor([[0.7, 0.2, 0.1]]), torch.tensor([[0.3, 0.3, 0.4]])
    assert abs(distillation(p, q.log()) - distillation(q, p.log())) > 0.003


def test_loss_matches_both_published_scripts():
    for classes, factor in ((10, 1), (100, 10)):  # F.kl_div's mean over images and classes, times ten on CIFAR-100
        target, logits = torch.rand(4, classes).softmax(1), torch.randn(4, classes)
        published = factor * F.kl_div(logits.log_softmax(1), target, reduction="none").mean()
        assert distillation(target, logits).item() == pytest.approx(published.item(), abs=1e-4)


def test_weights_move_toward_slower_task():
    objective = objective_of()
    objective.balance(torch.tensor([2.0, 1.0]), epoch=0)
    assert objective.weights.tolist() == [0.5, 0.5] and objective.first_losses.tolist() == [2, 1]
    objective.balance(torch.tensor([1.8, 0.3]), epoch=0)  # r = 0.9 and 0.3, shares 0.75 and 0.25
    clean = 0.5 - 0.025 * (0.5 - 0.25)
    assert objective.weights.tolist() == pytest.approx([1 - clean, clean])
    assert objective.first_losses.tolist() == [2, 1]


def test_loss_uses_updated_weights_without_gradient():
    objective = objective_of(eta=1.0)
    objective.first_losses.copy_(torch.tensor([0.1, 1.0]))
    loss = objective(clean_batch())
    loss.total.backward()
    assert not objective.weights.requires_grad and objective.weights[0] > 0.6
    model = objective.model
    adv_loss = distillation(TEACHERS["robust"](images_of(ADV)).softmax(1), model(images_of(ADV)))
    clean_loss = distillation(TEACHERS["clean"](images_of(CLEAN)).softmax(1), model(images_of(CLEAN)))
    total = objective.weights[0] * adv_loss + objective.weights[1] * clean_loss
    torch.testing.assert_close(loss.total, total)
    torch.testing.assert_close(model.scale.grad, torch.autograd.grad(total, model.scale)[0])


def test_eta_follows_lr_schedule():
    config, steps = MTARDConfig(), []
    for epoch in (214, 215, 260, 285):
        objective = objective_of()
        objective.first_losses.copy_(torch.ones(2))
        objective.balance(torch.tensor([3.0, 1.0]), epoch)
        steps.append(objective.weights[0].item() - 0.5)
    assert steps == pytest.approx([0.00625, 0.000625, 0.0000625, 0.00000625], rel=0.02)  # float32 beside 0.5
    factor = lr_schedule(config)
    assert [factor(e) for e in (214, 215, 260, 285, 299)] == pytest.approx([1, 0.1, 0.01, 0.001, 0.001])


def test_weights_and_first_losses_are_checkpointed():
    objective = objective_of()
    assert objective.first_losses.isnan().all()
    objective(clean_batch())
    objective.balance(torch.tensor([1.0, 0.01]), epoch=0)
    restored = objective_of()
    restored.load_state_dict(objective.state_dict())
    assert torch.equal(restored.weights, objective.weights)
    assert torch.equal(restored.first_losses, objective.first_losses)
    assert not any(name.startswith(("robust", "clean")) for name in objective.state_dict())
    torch.testing.assert_close(restored(clean_batch()).total, objective(clean_batch()).total, rtol=0, atol=0)


def test_attack_uses_no_teacher_and_small_start(monkeypatch):
    """The start is x + 0.001 N(0, 1), not clamped."""
    images, labels = color_blobs(24)
    objective = MTARDObjective(TinyBatchNormNet().train(), THREAT, MTARDConfig(), {**TEACHERS})
    objective.robust = objective.clean = None  # a call would fail
    adv = objective.inner_maximization(batch_of(images, labels))
    model = objective.model.eval()
    with torch.no_grad():
        assert F.cross_entropy(model(adv), labels) > F.cross_entropy(model(images), labels) + 0.01
    skip_attack(monkeypatch)
    start = objective.inner_maximization(batch_of(torch.zeros(24, 3, 8, 8), labels))
    assert start.std().item() == pytest.approx(0.001, rel=0.05) and start.min() < -0.001


@pytest.mark.parametrize(("mode", "moves"), [("eval", 2), ("train", 2 + 3)])
def test_batchnorm_updates_per_step(mode, moves):
    """Two updates per step, and more in the attack only in train mode."""
    images, labels = color_blobs(12)
    model, config = TinyBatchNormNet().train(), MTARDConfig(inner_steps=3, attack_bn_mode=mode)
    MTARDObjective(model, THREAT, config, frozen_models(TEACHERS))(batch_of(images, labels))
    assert int(model.body[1].num_batches_tracked) == moves
