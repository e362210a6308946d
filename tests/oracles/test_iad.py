"""IAD-I and IAD-II: losses by hand, trust, gradient paths, the start, the epoch gate and the missing second drop."""

import math

import pytest
import torch
from torch import nn

from robobench.core.losses import kl
from robobench.core.rng import KeyedRng
from robobench.core.threat import ThreatModel
from robobench.defenses.iad import IAD, IADConfig, IADObjective, trust
from robobench.training.base import Batch, DefenseSetup, FrozenModel
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


ROBUST, STANDARD = FrozenModel(Echo(0.0, 0.5, 1.0)), FrozenModel(Echo(1.0, 0.0, -1.0))


def images_of(probs):
    return torch.tensor(probs).log().view(len(probs), -1, 1, 1)


def softmax(logits, temperature=1.0):
    weights = [math.exp(z / temperature) for z in logits]
    return [w / sum(weights) for w in weights]


def answers(teacher, probs, temperature=1.0):
    """The toy networks' softened probabilities, without torch's functions."""
    bias = teacher.module.bias.tolist() if isinstance(teacher, FrozenModel) else [0.0, 0.0, 0.0]
    return [softmax([math.log(p) + b for p, b in zip(row, bias, strict=True)], temperature) for row in probs]


def divergence(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def mean_kl(ps, qs, weights=(1, 1)):
    return sum(w * divergence(p, q) for w, p, q in zip(weights, ps, qs, strict=True)) / len(ps)


def batch_of(images, labels, epoch=0):
    index = torch.arange(len(images))
    return Batch(images, labels, index, epoch, KeyedRng.of(index, "test", epoch))


def objective_of(model=None, **changes):
    config = IADConfig(**changes)
    made = IADObjective(model or Echo(), THREAT, config, {"robust": ROBUST, "clean": STANDARD})
    made.inner_maximization = lambda batch: images_of(ADV)
    return made


def total_of(epoch, **changes):
    return objective_of(**changes)(batch_of(images_of(CLEAN), LABELS, epoch)).total.item()


ALPHA = [p[y] ** 0.1 for p, y in zip(answers(ROBUST, ADV), LABELS.tolist(), strict=True)]


@pytest.mark.parametrize("alpha_on_teacher", [False, True])
def test_iad_1_asks_the_teacher_about_the_clean_image_and_trusts_it_by_the_attacked_one(alpha_on_teacher):
    taught = mean_kl(answers(ROBUST, CLEAN), ADV, ALPHA if alpha_on_teacher else (1, 1))
    introspective = mean_kl(CLEAN, ADV, [1 - a for a in ALPHA])
    total = total_of(60, alpha_on_teacher=alpha_on_teacher)
    assert total == pytest.approx(taught + introspective, rel=1e-5)
    assert abs(mean_kl(ADV, answers(ROBUST, CLEAN)) - taught) > 0.01  # the case can tell the order


def test_iad_1_softens_only_the_teachers_term():
    taught = 4 * mean_kl(answers(ROBUST, CLEAN, 2), answers(None, ADV, 2))
    introspective = mean_kl(CLEAN, ADV, [1 - a for a in ALPHA])
    assert total_of(60, temperature=2.0) == pytest.approx(taught + introspective, rel=1e-5)


def test_iad_1_mixes_in_the_clean_cross_entropy_with_the_rest_of_a():
    clean_loss = -(math.log(0.7) + math.log(0.5)) / 2
    expected = 0.75 * total_of(60) + 0.25 * clean_loss
    assert total_of(60, a=0.75) == pytest.approx(expected, rel=1e-5)


def test_iad_2_asks_both_teachers_about_the_attacked_image():
    robust_loss = -(math.log(0.3) + math.log(0.1)) / 2
    taught = mean_kl(answers(ROBUST, ADV), ADV, ALPHA)
    introspective = mean_kl(CLEAN, ADV, [1 - a for a in ALPHA])
    clean_taught = mean_kl(answers(STANDARD, ADV), ADV)
    expected = 0.25 * robust_loss + 0.5 * (taught + introspective) + 0.25 * clean_taught
    assert total_of(40, variant="II") == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("variant", "first"), [("I", 60), ("II", 40)])
def test_before_its_gate_the_teacher_is_trusted_fully(variant, first):
    make = objective_of(variant=variant)
    alphas = [
        make(batch_of(images_of(CLEAN), LABELS, epoch)).metrics["alpha"].item() for epoch in (0, first - 1, first)
    ]
    assert alphas[:2] == [1, 1] and alphas[2] == pytest.approx(sum(ALPHA) / 2, rel=1e-5)


@pytest.mark.parametrize(("p", "alpha"), [(0.9, 0.990), (0.5, 0.933), (0.1, 0.794), (0.01, 0.631)])
def test_trust_is_the_tenth_root_of_the_labels_probability(p, alpha):
    logits = torch.tensor([[math.log(p), math.log(1 - p)]])
    assert trust(logits, torch.tensor([0]), 0.1).item() == pytest.approx(alpha, abs=5e-4)


@pytest.mark.parametrize("variant", ["I", "II"])
def test_the_introspection_target_keeps_its_gradient_and_the_trust_has_none(variant):
    model = Echo()
    objective = objective_of(model, variant=variant)
    objective(batch_of(images_of(CLEAN), LABELS, 60)).total.backward()

    def gradient(detach):
        clean, adv, labels = model(images_of(CLEAN)), model(images_of(ADV)), LABELS
        alpha = torch.tensor(ALPHA)
        own = kl(clean.detach() if detach else clean, adv)
        if variant == "I":
            total = (kl(ROBUST(images_of(CLEAN)), adv) + (1 - alpha) * own).mean()
        else:
            total = 0.25 * nn.functional.cross_entropy(adv, labels)
            total = total + 0.5 * (alpha * kl(ROBUST(images_of(ADV)), adv) + (1 - alpha) * own).mean()
            total = total + 0.25 * kl(STANDARD(images_of(ADV)), adv).mean()
        return torch.autograd.grad(total, model.scale)[0]

    torch.testing.assert_close(model.scale.grad, gradient(detach=False))
    assert (model.scale.grad - gradient(detach=True)).abs().max() > 1e-3


@pytest.mark.parametrize(("norm", "low"), [("Linf", -0.1), ("L2", 0.0)])
def test_the_linf_start_is_uniform_and_not_clamped(monkeypatch, norm, low):
    monkeypatch.setattr(AdvTrainConfig, "ascend", lambda self, objective, start, *rest: start)
    objective = IADObjective(TinyBatchNormNet(), ThreatModel(norm, 0.1), IADConfig(), {"robust": ROBUST})
    start = objective.inner_maximization(batch_of(torch.zeros(16, 3, 8, 8), torch.zeros(16).long()))
    assert start.min().item() == pytest.approx(low, abs=0.001) and start.max() <= 0.1


@pytest.mark.parametrize(("mode", "moves"), [("train", 2 + 3), ("eval", 2)])
def test_the_attack_moves_batchnorm_unless_eval_mode_is_chosen(mode, moves):
    images, labels = color_blobs(12)
    model, config = TinyBatchNormNet().train(), IADConfig(inner_steps=3, attack_bn_mode=mode)
    IADObjective(model, THREAT, config, {"robust": FrozenModel(TinyBatchNormNet())})(batch_of(images, labels))
    assert int(model.body[1].num_batches_tracked) == moves
    assert IADConfig().attack_bn_mode == "train"


def stage_of(config):
    setup = DefenseSetup(
        model=TinyBatchNormNet(),
        threat=THREAT,
        config=config,
        num_classes=3,
        image_shape=(3, 8, 8),
        train_size=12,
        required_models={"robust": ROBUST, "clean": STANDARD},
    )
    (stage,) = IAD(config).stages(setup)
    return stage


def test_the_second_drop_of_the_learning_rate_is_missing_unless_asked_for():
    published, documented = stage_of(IADConfig()).schedule, stage_of(IADConfig(lr_second_drop=True)).schedule
    epochs = (99, 100, 149, 150, 199)
    assert [published(e) for e in epochs] == pytest.approx([1, 0.1, 0.1, 0.1, 0.1])
    assert [documented(e) for e in epochs] == pytest.approx([1, 0.1, 0.1, 0.01, 0.01])
    own = stage_of(IADConfig(lr_second_drop=True, drops=(0.25,))).schedule
    assert [own(e) for e in (49, 50, 149, 150)] == pytest.approx([1, 0.1, 0.1, 0.01])
    with pytest.raises(ValueError, match="lr_second_drop must be false under schedule cosine"):
        IADConfig(lr_second_drop=True, schedule="cosine")


def test_only_iad_2_requires_a_clean_teacher():
    assert dict(IAD(IADConfig()).requires) == {"robust": "at"}
    assert dict(IAD(IADConfig(variant="II")).requires) == {"robust": "at", "clean": "standard"}


def test_weights_that_leave_nothing_for_the_labels_are_refused():
    with pytest.raises(ValueError, match=r"a2 must be <= 1 - a1 = 0.2, got 0.25"):
        IADConfig(a1=0.8)
