"""IAD-I and IAD-II: losses by hand, trust, gradient paths, start, first introspection, missing second drop."""

import math

import pytest
import torch
from torch import nn

from robobench.core.losses import kl
from robobench.core.threat import ThreatModel
from robobench.defenses.iad import IAD, IADConfig, IADObjective, trust
from robobench.training.base import FrozenModel
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
    setup_of,
    skip_attack,
)
from tests.helpers.toys import TinyBatchNormNet, color_blobs

ROBUST, STANDARD = FrozenModel(Echo(0.0, 0.5, 1.0)), FrozenModel(Echo(1.0, 0.0, -1.0))


def probs_of(teacher, probs, temperature=1.0):
    """What a teacher predicts, or the student (None)."""
    bias = (0.0, 0.0, 0.0) if teacher is None else teacher.module.bias.tolist()
    return echo_probs(bias, probs, temperature)


def objective_of(model=None, **changes):
    config = IADConfig(**changes)
    made = IADObjective(model or Echo(), THREAT, config, {"robust": ROBUST, "clean": STANDARD})
    made.inner_maximization = lambda batch: images_of(ADV)
    return made


def total_of(epoch, **changes):
    return objective_of(**changes)(batch_of(images_of(CLEAN), LABELS, epoch)).total.item()


ALPHA = [p[y] ** 0.1 for p, y in zip(probs_of(ROBUST, ADV), LABELS.tolist(), strict=True)]


@pytest.mark.parametrize("alpha_on_teacher", [False, True])
def test_variant_1_loss_equals_hand_computed_terms(alpha_on_teacher):
    """The target is the teacher's on the clean image; alpha is computed on the adversarial example."""
    distillation = mean_kl(probs_of(ROBUST, CLEAN), ADV, ALPHA if alpha_on_teacher else (1, 1))
    introspective = mean_kl(CLEAN, ADV, [1 - a for a in ALPHA])
    total = total_of(60, alpha_on_teacher=alpha_on_teacher)
    assert total == pytest.approx(distillation + introspective, rel=1e-5)
    assert abs(mean_kl(ADV, probs_of(ROBUST, CLEAN)) - distillation) > 0.01  # the case can tell the order


def test_variant_1_temperature_affects_only_teacher_term():
    distillation = 4 * mean_kl(probs_of(ROBUST, CLEAN, 2), probs_of(None, ADV, 2))
    introspective = mean_kl(CLEAN, ADV, [1 - a for a in ALPHA])
    assert total_of(60, temperature=2.0) == pytest.approx(distillation + introspective, rel=1e-5)


def test_variant_1_adds_clean_cross_entropy():
    clean_loss = -(math.log(0.7) + math.log(0.5)) / 2
    expected = 0.75 * total_of(60) + 0.25 * clean_loss
    assert total_of(60, a=0.75) == pytest.approx(expected, rel=1e-5)


def test_variant_2_loss_equals_hand_computed_terms():
    """Both teachers' targets are those on the adversarial example."""
    robust_loss = -(math.log(0.3) + math.log(0.1)) / 2
    distillation = mean_kl(probs_of(ROBUST, ADV), ADV, ALPHA)
    introspective = mean_kl(CLEAN, ADV, [1 - a for a in ALPHA])
    clean_distillation = mean_kl(probs_of(STANDARD, ADV), ADV)
    expected = 0.25 * robust_loss + 0.5 * (distillation + introspective) + 0.25 * clean_distillation
    assert total_of(40, variant="II") == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("variant", "first"), [("I", 60), ("II", 40)])
def test_alpha_is_one_before_introspection_starts(variant, first):
    make = objective_of(variant=variant)
    alphas = [
        make(batch_of(images_of(CLEAN), LABELS, epoch)).metrics["alpha"].item() for epoch in (0, first - 1, first)
    ]
    assert alphas[:2] == [1, 1] and alphas[2] == pytest.approx(sum(ALPHA) / 2, rel=1e-5)


@pytest.mark.parametrize(("p", "alpha"), [(0.9, 0.990), (0.5, 0.933), (0.1, 0.794), (0.01, 0.631)])
def test_trust_is_tenth_root_of_label_probability(p, alpha):
    logits = torch.tensor([[math.log(p), math.log(1 - p)]])
    assert trust(logits, torch.tensor([0]), 0.1).item() == pytest.approx(alpha, abs=5e-4)


@pytest.mark.parametrize("variant", ["I", "II"])
def test_introspection_target_has_gradient_and_trust_none(variant):
    model = Echo()
    objective = objective_of(model, variant=variant)
    objective(batch_of(images_of(CLEAN), LABELS, 60)).total.backward()

    def gradient(detach):
        clean, adv, labels = model(images_of(CLEAN)), model(images_of(ADV)), LABELS
        alpha = torch.tensor(ALPHA)
        introspective = kl(clean.detach() if detach else clean, adv)
        if variant == "I":
            total = (kl(ROBUST(images_of(CLEAN)), adv) + (1 - alpha) * introspective).mean()
        else:
            total = 0.25 * nn.functional.cross_entropy(adv, labels)
            total = total + 0.5 * (alpha * kl(ROBUST(images_of(ADV)), adv) + (1 - alpha) * introspective).mean()
            total = total + 0.25 * kl(STANDARD(images_of(ADV)), adv).mean()
        return torch.autograd.grad(total, model.scale)[0]

    torch.testing.assert_close(model.scale.grad, gradient(detach=False))
    assert (model.scale.grad - gradient(detach=True)).abs().max() > 1e-3


@pytest.mark.parametrize(("norm", "low"), [("Linf", -0.1), ("L2", 0.0)])
def test_linf_start_is_uniform_and_not_clamped(monkeypatch, norm, low):
    skip_attack(monkeypatch)
    objective = IADObjective(TinyBatchNormNet(), ThreatModel(norm, 0.1), IADConfig(), {"robust": ROBUST})
    start = objective.inner_maximization(batch_of(torch.zeros(16, 3, 8, 8), torch.zeros(16).long()))
    assert start.min().item() == pytest.approx(low, abs=0.001) and start.max() <= 0.1


@pytest.mark.parametrize(("mode", "moves"), [("train", 2 + 3), ("eval", 2)])
def test_attack_updates_batchnorm_only_in_train_mode(mode, moves):
    images, labels = color_blobs(12)
    model, config = TinyBatchNormNet().train(), IADConfig(inner_steps=3, attack_bn_mode=mode)
    IADObjective(model, THREAT, config, {"robust": FrozenModel(TinyBatchNormNet())})(batch_of(images, labels))
    assert int(model.body[1].num_batches_tracked) == moves
    assert IADConfig().attack_bn_mode == "train"


def stage_of(config):
    setup = setup_of(required_models={"robust": ROBUST, "clean": STANDARD})
    (stage,) = IAD(config).stages(setup)
    return stage


def test_second_lr_drop_is_optional():
    published, documented = stage_of(IADConfig()).schedule, stage_of(IADConfig(lr_second_drop=True)).schedule
    epochs = (99, 100, 149, 150, 199)
    assert [published(e) for e in epochs] == pytest.approx([1, 0.1, 0.1, 0.1, 0.1])
    assert [documented(e) for e in epochs] == pytest.approx([1, 0.1, 0.1, 0.01, 0.01])
    other = stage_of(IADConfig(lr_second_drop=True, drops=(0.25,))).schedule
    assert [other(e) for e in (49, 50, 149, 150)] == pytest.approx([1, 0.1, 0.1, 0.01])
    with pytest.raises(ValueError, match="lr_second_drop must be false with schedule cosine"):
        IADConfig(lr_second_drop=True, schedule="cosine")


def test_only_variant_2_requires_clean_teacher():
    assert dict(IAD(IADConfig()).requires) == {"robust": "at"}
    assert dict(IAD(IADConfig(variant="II")).requires) == {"robust": "at", "clean": "standard"}


def test_weights_above_one_are_rejected():
    with pytest.raises(ValueError, match=r"a2 must be <= 1 - a1 = 0.2, got 0.25"):
        IADConfig(a1=0.8)
