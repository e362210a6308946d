"""AdaAD and AdaIAD: losses by hand with both reductions, and the attack's gradient through both models."""

import pytest
import torch

from robobench.attack_engine.gradient import input_gradient
from robobench.core.losses import kl
from robobench.core.module_state import eval_mode
from robobench.defenses.adaad import AdaADConfig, AdaADObjective
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
from tests.helpers.toys import TinyBatchNormNet, color_blobs

BIAS = (0.0, 2.0, 0.5)
TEACHER = FrozenModel(Echo(*BIAS))


def teacher_probs(probs):
    return echo_probs(BIAS, probs)


def objective_of(model=None, **changes):
    made = AdaADObjective(model or Echo(), THREAT, AdaADConfig(**changes), TEACHER)
    made.inner_maximization = lambda batch: images_of(ADV)
    return made


def loss_of(epoch=0, **changes):
    return objective_of(**changes)(batch_of(images_of(CLEAN), LABELS, epoch))


@pytest.mark.parametrize(("reduction", "divisor"), [("mean", 3), ("batchmean", 1)])
def test_loss_is_kl_on_adversarial_examples(reduction, divisor):
    expected = mean_kl(teacher_probs(ADV), ADV)
    assert abs(expected - mean_kl(ADV, teacher_probs(ADV))) > 0.005  # the case can tell the order
    assert loss_of(reduction=reduction).total.item() == pytest.approx(expected / divisor, rel=1e-5)


def test_published_reduction_depends_on_class_count():
    logits, labels = torch.randn(4, 100), torch.zeros(4, dtype=torch.long)
    target = torch.randn(4, 100)
    assert AdaADConfig().reduction == "published"
    assert loss_of().total.item() == pytest.approx(loss_of(reduction="mean").total.item())
    made = AdaADObjective(lambda images: images.flatten(1), THREAT, AdaADConfig(), lambda images: target)  # type: ignore[arg-type]
    made.inner_maximization = lambda batch: logits.view(4, 100, 1, 1)
    total = made(batch_of(logits.view(4, 100, 1, 1), labels)).total
    assert total.item() == pytest.approx(kl(target, logits).mean().item(), rel=1e-5)


def test_alpha_weights_adversarial_and_clean_terms():
    expected = (0.75 * mean_kl(teacher_probs(ADV), ADV) + 0.25 * mean_kl(teacher_probs(CLEAN), CLEAN)) / 3
    assert loss_of(alpha=0.75).total.item() == pytest.approx(expected, rel=1e-5)


def test_adaiad_adds_introspection_from_epoch_60():
    """The teacher's term is never multiplied by the trust."""
    plain = mean_kl(teacher_probs(ADV), ADV)
    weights = [1 - p[y] ** 0.1 for p, y in zip(teacher_probs(ADV), LABELS.tolist(), strict=True)]
    assert loss_of(59, form="adaiad").total.item() == pytest.approx(plain, rel=1e-5)
    expected = plain + mean_kl(CLEAN, ADV, weights)
    assert loss_of(60, form="adaiad").total.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("form", ["adaad", "adaiad"])
def test_only_introspection_target_has_gradient(form):
    model = Echo()
    objective_of(model, form=form, alpha=0.5)(batch_of(images_of(CLEAN), LABELS, 60)).total.backward()
    clean, adv = model(images_of(CLEAN)), model(images_of(ADV))
    if form == "adaad":
        total = (kl(TEACHER(images_of(ADV)), adv) + kl(TEACHER(images_of(CLEAN)), clean)).mean() / 6
    else:
        trust = torch.tensor([p[y] ** 0.1 for p, y in zip(teacher_probs(ADV), LABELS.tolist(), strict=True)])
        total = (kl(TEACHER(images_of(ADV)), adv) + (1 - trust) * kl(clean, adv)).mean()
    torch.testing.assert_close(model.scale.grad, torch.autograd.grad(total, model.scale)[0])
    assert TEACHER.module.scale.grad is None


@pytest.fixture
def pair():
    torch.manual_seed(1)
    return TinyBatchNormNet().train(), FrozenModel(TinyBatchNormNet())


def test_attack_uses_gradient_through_both_models(pair):
    (images, labels), (student, teacher) = color_blobs(12), pair
    objective = AdaADObjective(student, THREAT, AdaADConfig(inner_steps=1), teacher)
    start = images + 0.001 * batch_of(images, labels).rng.child("start").normal_like(images)
    with eval_mode(student):
        both = input_gradient(lambda adv: kl(teacher(adv), student(adv)), start)
        fixed = teacher(start).detach()
        alone = input_gradient(lambda adv: kl(fixed, student(adv)), start)
    assert (both - alone).norm() > 0.1 * both.norm()  # the teacher's share is not small
    adv = objective.inner_maximization(batch_of(images, labels))
    torch.testing.assert_close(adv, THREAT.step(start, both, 0.25 * 0.1, images))
    assert not torch.equal(adv, THREAT.step(start, alone, 0.25 * 0.1, images))


def test_attack_increases_disagreement_and_keeps_teacher(pair):
    (images, labels), (student, teacher) = color_blobs(24), pair
    before = {name: value.clone() for name, value in teacher.module.state_dict().items()}
    objective = AdaADObjective(student, THREAT, AdaADConfig(), teacher)
    adv = objective.inner_maximization(batch_of(images, labels))
    with eval_mode(student), torch.no_grad():
        first, last = (kl(teacher(x), student(x)).mean() for x in (images, adv))
    assert last > first * 1.05
    assert all(torch.equal(value, before[name]) for name, value in teacher.module.state_dict().items())
    assert all(p.grad is None for p in (*teacher.module.parameters(), *student.parameters()))


def test_start_is_small_normal_and_not_clamped(monkeypatch, pair):
    skip_attack(monkeypatch)
    objective = AdaADObjective(pair[0], THREAT, AdaADConfig(), pair[1])
    start = objective.inner_maximization(batch_of(torch.ones(16, 3, 8, 8), torch.zeros(16).long()))
    assert (start - 1).std().item() == pytest.approx(0.001, rel=0.05) and start.max() > 1.001


@pytest.mark.parametrize(
    ("changes", "moves"),
    [({}, 1), ({"attack_bn_mode": "train"}, 1 + 3), ({"alpha": 0.5}, 2), ({"form": "adaiad"}, 2)],
)
def test_batchnorm_updates_per_step(pair, changes, moves):
    images, labels = color_blobs(12)
    student, teacher = pair
    AdaADObjective(student, THREAT, AdaADConfig(inner_steps=3, **changes), teacher)(batch_of(images, labels))
    assert int(student.body[1].num_batches_tracked) == moves
    assert int(teacher.module.body[1].num_batches_tracked) == 0


def test_lr_drops_at_epochs_100_and_150():
    config = AdaADConfig()
    factor = lr_schedule(config)
    assert [factor(e) for e in (99, 100, 150)] == pytest.approx([1, 0.1, 0.01])
    assert (config.epochs, config.weight_decay, config.alpha) == (200, 5e-4, 1.0)
