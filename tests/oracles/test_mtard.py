"""MTARD: both losses by hand, the moving weights, what a checkpoint keeps, and which teacher sees what."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robobench.core.rng import KeyedRng
from robobench.core.threat import ThreatModel
from robobench.defenses.mtard import MTARDConfig, MTARDObjective, distillation
from robobench.training.base import Batch, FrozenModel, lr_schedule
from robobench.training.inner_maximization import AdvTrainConfig
from tests.helpers.toys import TinyBatchNormNet, color_blobs

THREAT = ThreatModel("Linf", 0.1)
CLEAN, ADV = [[0.7, 0.2, 0.1], [0.2, 0.3, 0.5]], [[0.3, 0.3, 0.4], [0.6, 0.3, 0.1]]
LABELS = torch.tensor([0, 2])


class Echo(nn.Module):
    """The images are the logits, shifted by a bias and times a weight to differentiate by."""

    def __init__(self, *bias):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.bias = torch.tensor(bias or (0.0, 0.0, 0.0))

    def forward(self, images):
        return (images.flatten(1) + self.bias) * self.scale


TEACHERS = {"robust": FrozenModel(Echo(0.0, 0.5, 1.0)), "clean": FrozenModel(Echo(1.0, 0.0, -1.0))}


def images_of(probs):
    return torch.tensor(probs).log().view(len(probs), -1, 1, 1)


def batch_of(images=None, labels=LABELS, epoch=0):
    images = images_of(CLEAN) if images is None else images
    index = torch.arange(len(images))
    return Batch(images, labels, index, epoch, KeyedRng.of(index, "test", epoch))


def objective_of(**changes):
    made = MTARDObjective(Echo(), THREAT, MTARDConfig(**changes), TEACHERS)
    made.inner_maximization = lambda batch: images_of(ADV)
    return made


def by_hand(role, probs):
    """KL / 10 with 1e-5 in the target's logarithm, over two samples."""
    total = 0.0
    for row in probs:
        weights = [p * math.exp(b) for p, b in zip(row, TEACHERS[role].module.bias.tolist(), strict=True)]
        target = [w / sum(weights) for w in weights]
        total += sum(t * (math.log(t + 1e-5) - math.log(s)) for t, s in zip(target, row, strict=True))
    return total / (2 * 10)


def test_the_robust_teacher_sees_attacked_and_the_clean_teacher_clean_images():
    loss = objective_of()(batch_of())
    assert loss.metrics["adv_loss"].item() == pytest.approx(by_hand("robust", ADV), rel=1e-5)
    assert loss.metrics["clean_loss"].item() == pytest.approx(by_hand("clean", CLEAN), rel=1e-5)
    assert abs(by_hand("clean", ADV) - by_hand("robust", ADV)) > 0.01  # the case can tell the teachers
    # The first mini-batch has r = 1 for both, so the weights stay.
    total = 0.5 * by_hand("robust", ADV) + 0.5 * by_hand("clean", CLEAN)
    assert loss.total.item() == pytest.approx(total, rel=1e-5)


def test_the_small_constant_is_in_the_targets_logarithm_only():
    target, logits = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 80.0]])  # p_S underflows beside 1e-5
    assert distillation(target, logits).item() == pytest.approx((math.log(1 + 1e-5) + 80) / 10, rel=1e-5)


def test_exchanging_student_and_teacher_changes_the_loss():
    p, q = torch.tensor([[0.7, 0.2, 0.1]]), torch.tensor([[0.3, 0.3, 0.4]])
    assert abs(distillation(p, q.log()) - distillation(q, p.log())) > 0.003


def test_the_loss_is_that_of_both_published_scripts():
    for classes, factor in ((10, 1), (100, 10)):  # F.kl_div's mean over images and classes, times ten on CIFAR-100
        target, logits = torch.rand(4, classes).softmax(1), torch.randn(4, classes)
        published = factor * F.kl_div(logits.log_softmax(1), target, reduction="none").mean()
        assert distillation(target, logits).item() == pytest.approx(published.item(), abs=1e-4)


def test_the_weights_move_towards_the_task_that_has_fallen_less():
    objective = objective_of()
    objective.balance(torch.tensor([2.0, 1.0]), epoch=0)
    assert objective.weights.tolist() == [0.5, 0.5] and objective.first_losses.tolist() == [2, 1]
    objective.balance(torch.tensor([1.8, 0.3]), epoch=0)  # r = 0.9 and 0.3, shares 0.75 and 0.25
    clean = 0.5 - 0.025 * (0.5 - 0.25)
    assert objective.weights.tolist() == pytest.approx([1 - clean, clean])
    assert objective.first_losses.tolist() == [2, 1]


def test_the_loss_uses_the_weights_after_their_update_and_no_gradient_flows_through_them():
    objective = objective_of(eta=1.0)
    objective.first_losses.copy_(torch.tensor([0.1, 1.0]))
    loss = objective(batch_of())
    loss.total.backward()
    assert not objective.weights.requires_grad and objective.weights[0] > 0.6
    model = objective.model
    adv_loss = distillation(TEACHERS["robust"](images_of(ADV)).softmax(1), model(images_of(ADV)))
    clean_loss = distillation(TEACHERS["clean"](images_of(CLEAN)).softmax(1), model(images_of(CLEAN)))
    total = objective.weights[0] * adv_loss + objective.weights[1] * clean_loss
    torch.testing.assert_close(loss.total, total)
    torch.testing.assert_close(model.scale.grad, torch.autograd.grad(total, model.scale)[0])


def test_eta_is_divided_together_with_the_learning_rate():
    config, steps = MTARDConfig(), []
    for epoch in (214, 215, 260, 285):
        objective = objective_of()
        objective.first_losses.copy_(torch.ones(2))
        objective.balance(torch.tensor([3.0, 1.0]), epoch)
        steps.append(objective.weights[0].item() - 0.5)
    assert steps == pytest.approx([0.00625, 0.000625, 0.0000625, 0.00000625], rel=0.02)  # float32 beside 0.5
    factor = lr_schedule(config)
    assert [factor(e) for e in (214, 215, 260, 285, 299)] == pytest.approx([1, 0.1, 0.01, 0.001, 0.001])


def test_weights_and_first_losses_survive_a_checkpoint():
    objective = objective_of()
    assert objective.first_losses.isnan().all()
    objective(batch_of())
    objective.balance(torch.tensor([1.0, 0.01]), epoch=0)
    restored = objective_of()
    restored.load_state_dict(objective.state_dict())
    assert torch.equal(restored.weights, objective.weights)
    assert torch.equal(restored.first_losses, objective.first_losses)
    assert not any(name.startswith(("robust", "clean")) for name in objective.state_dict())
    torch.testing.assert_close(restored(batch_of()).total, objective(batch_of()).total, rtol=0, atol=0)


def test_the_start_is_a_thousandth_of_a_normal_not_clamped_and_the_attack_asks_no_teacher(monkeypatch):
    images, labels = color_blobs(24)
    objective = MTARDObjective(TinyBatchNormNet().train(), THREAT, MTARDConfig(), {**TEACHERS})
    objective.robust = objective.clean = None  # a call would fail
    adv = objective.inner_maximization(batch_of(images, labels))
    model = objective.model.eval()
    with torch.no_grad():
        assert F.cross_entropy(model(adv), labels) > F.cross_entropy(model(images), labels) + 0.01
    monkeypatch.setattr(AdvTrainConfig, "ascend", lambda self, objective, start, *rest: start)
    start = objective.inner_maximization(batch_of(torch.zeros(24, 3, 8, 8), labels))
    assert start.std().item() == pytest.approx(0.001, rel=0.05) and start.min() < -0.001


@pytest.mark.parametrize(("mode", "moves"), [("eval", 2), ("train", 2 + 3)])
def test_batchnorm_moves_twice_in_a_step_and_in_the_attack_only_in_train_mode(mode, moves):
    images, labels = color_blobs(12)
    model, config = TinyBatchNormNet().train(), MTARDConfig(inner_steps=3, attack_bn_mode=mode)
    teachers = {"robust": FrozenModel(TinyBatchNormNet()), "clean": FrozenModel(TinyBatchNormNet())}
    MTARDObjective(model, THREAT, config, teachers)(batch_of(images, labels))
    assert int(model.body[1].num_batches_tracked) == moves
