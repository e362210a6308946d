"""LIET: label perturbations of a gray image, noise in their place, random sign, random soft labels, consistency."""

import math

import pytest
import torch
import torch.nn.functional as F

from robobench.core.threat import ThreatModel
from robobench.defenses.liet import LIETConfig, LIETObjective, jensen_shannon
from tests.helpers.defenses import batch_of
from tests.helpers.toys import LinearTwoClass

EPS, SHAPE = 0.05, (3, 4, 4)


def objective_of(**changes):
    return LIETObjective(LinearTwoClass(SHAPE), ThreatModel("Linf", EPS), LIETConfig(**changes), 2, SHAPE)


def batch(epoch=0, count=64):
    return batch_of(torch.full((count, *SHAPE), 0.5), torch.arange(count) % 2, epoch)


def test_label_perturbation_is_gradient_sign_of_each_class():
    objective = objective_of(smoothing=0.1)
    objective.update_signs(batch())
    ascent = objective.model.w.detach().sign().view(SHAPE)
    torch.testing.assert_close(objective.signs, torch.stack((-ascent, ascent)))


def test_start_without_noise_is_label_perturbation_of_either_sign():
    objective = objective_of(min_mask=0.0, max_mask=0.0)
    data = batch()
    objective.update_signs(data)
    ratio = (objective.draw_start(data) - 0.5) / (EPS * objective.signs[data.labels])
    signs = ratio.mean((1, 2, 3))
    torch.testing.assert_close(ratio.abs(), torch.ones_like(ratio))
    torch.testing.assert_close(signs.abs(), torch.ones_like(signs))
    assert 0.3 < (signs > 0).float().mean() < 0.7


def test_share_of_noise_lies_in_its_range():
    objective = objective_of(min_mask=0.2, max_mask=0.4)
    data = batch(count=400)
    objective.update_signs(data)
    noisy = ((objective.draw_start(data) - 0.5).abs() < EPS * 0.9999).float().mean((1, 2, 3))
    assert noisy.mean().item() == pytest.approx(0.3, abs=0.02)
    assert noisy.std() > 0.05  # images differ in their share


def test_label_perturbations_are_updated_in_intervals():
    objective, seen = objective_of(update_steps=3), []
    objective.update_signs = lambda batch: seen.append(int(objective.steps))
    for _ in range(7):
        objective(batch())
    objective.begin_epoch(batch())
    objective(batch())
    assert seen == [0, 3, 6, 0]


def test_target_has_label_share_and_random_rest():
    objective = objective_of(smoothing=0.6)
    objective.num_classes = 4
    logits, labels = torch.randn(50, 4).double(), torch.arange(50) % 4
    rng = batch().rng[:50]
    shares = rng.uniform(4) * (1 - F.one_hot(labels, 4))
    shares = 0.6 * shares / shares.sum(1, keepdim=True) + 0.4 * F.one_hot(labels, 4)
    by_hand = -(shares.double() * logits.log_softmax(1)).sum(1)
    torch.testing.assert_close(objective.loss(logits, labels, rng), by_hand)


def test_jensen_shannon_equals_hand_computed_value():
    first, second = torch.tensor([[0.8, 0.2], [0.5, 0.5]]).log(), torch.tensor([[0.4, 0.6], [0.5, 0.5]]).log()
    p, q, m = (0.8, 0.2), (0.4, 0.6), (0.6, 0.4)
    by_hand = sum(a * math.log(a / c) + b * math.log(b / c) for a, b, c in zip(p, q, m, strict=True)) / 2
    assert jensen_shannon(first, second).tolist() == pytest.approx([by_hand, 0.0], abs=1e-7)


def test_consistency_weight_grows_to_published_value():
    objective = objective_of(epochs=4, consistency=8.0)
    for epoch in (0, 3):
        loss = objective(batch(epoch))
        rest = loss.total.item() - loss.metrics["adv_loss"].item()
        assert rest == pytest.approx(8 * (epoch + 1) / 4 * loss.metrics["consistency"].item(), rel=1e-3)


def test_label_smoothing_of_training_is_refused():
    with pytest.raises(ValueError, match="label_smoothing must be 0"):
        LIETConfig(label_smoothing=0.1)
