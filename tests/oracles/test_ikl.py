"""IKL: the variance equals the code's sum over pairs; class weights are means of the previous epoch; growing radius."""

import math

import pytest
import torch

from robobench.defenses.ikl import IKLConfig, IKLObjective, weighted_variance
from robobench.training.accumulation import one_step
from tests.helpers.defenses import ADV, CLEAN, LABELS, THREAT, Echo, batch_of, images_of, softmax
from tests.helpers.toys import TinyBatchNormNet, color_blobs
from tests.helpers.training import RUNTIME


def test_variance_equals_sum_over_pairs():
    values = torch.randn(4, 5, dtype=torch.float64)
    weights = torch.randn(4, 5, dtype=torch.float64).softmax(1)
    pairs = (values[:, :, None] - values[:, None]).square() * weights[:, :, None] * weights[:, None]
    torch.testing.assert_close(weighted_variance(values, weights) / 2, pairs.sum((1, 2)) / 4)


def test_loss_equals_hand_computed_terms():
    objective = IKLObjective(Echo(), THREAT, IKLConfig(), 3)
    objective.inner_maximization = lambda batch: images_of(ADV)
    loss = objective(batch_of(images_of(CLEAN), LABELS))
    distance = soft = 0.0
    for p, q in zip(CLEAN, ADV, strict=True):
        d = [math.log(a) - math.log(b) for a, b in zip(p, q, strict=True)]
        distance += sum((x - sum(d) / 3) ** 2 for x in d) / 3 / 2 / 2
        soft -= sum(a * math.log(b) for a, b in zip(p, q, strict=True)) / 2
    clean_loss = -(math.log(0.7) + math.log(0.5)) / 2
    assert loss.total.item() == pytest.approx(clean_loss + 20 * distance + 4 * soft, rel=1e-5)


def test_class_weights_are_means_of_last_epoch():
    objective = IKLObjective(Echo(), THREAT, IKLConfig(), 3)
    objective.inner_maximization = lambda batch: images_of(ADV)
    batch = batch_of(images_of([*CLEAN, CLEAN[1]]), torch.tensor([0, 2, 2]))
    objective.inner_maximization = lambda batch: batch.images
    objective(batch)
    torch.testing.assert_close(objective.class_weights, torch.full((3, 3), 1 / 3))
    objective.update_weights(batch)
    softened = [softmax([math.log(p) for p in row], 4.0) for row in CLEAN]
    expected = torch.tensor([softened[0], [1 / 3] * 3, softened[1]])  # class 1 has no image and keeps its weights
    torch.testing.assert_close(objective.class_weights, expected)
    assert objective.prob_sums.abs().max() == 0


def test_radius_grows_over_whole_training():
    images, labels = color_blobs(6)
    objective = IKLObjective(TinyBatchNormNet(), THREAT, IKLConfig(epochs=4), 3)
    batches = [batch_of(images, labels, epoch) for epoch in range(4)]
    reach = [THREAT.distance(objective.inner_maximization(batch), images).max().item() for batch in batches]
    assert reach == pytest.approx([0.025, 0.05, 0.075, 0.1], abs=1e-6)


def test_weight_perturbation_counts_each_image_once():
    """The pass at the perturbed weights must not add the predictions of the batch again."""
    model = TinyBatchNormNet()
    config = IKLConfig(inner_steps=1, awp_gamma=0.01)
    objective = IKLObjective(model, THREAT, config, 3).train()
    one_step(RUNTIME, objective, torch.optim.SGD(model.parameters(), 0.1), batch_of(*color_blobs(6)), services=config)
    assert objective.prob_sums.sum().item() == pytest.approx(6)
