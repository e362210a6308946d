"""GradAlign: the cosine of two input gradients, its own gradient, and FGSM from the image."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from robobench.core.threat import ThreatModel
from robobench.defenses.gradalign import GradAlign, GradAlignConfig, GradAlignObjective, mean_cosine
from tests.helpers.defenses import batch_of
from tests.helpers.toys import LinearTwoClass, TinyBatchNormNet, color_blobs

THREAT = ThreatModel("Linf", 0.05)


def test_linear_model_has_cosine_one():
    """Input gradients of a linear model are parallel, so only the cross-entropy remains."""
    model, images = LinearTwoClass((3, 4, 4)), torch.full((5, 3, 4, 4), 0.5)
    batch = batch_of(images, torch.zeros(5).long())
    objective = GradAlignObjective(model, THREAT, GradAlignConfig())
    loss, adv = objective(batch), objective.inner_maximization(batch)
    assert loss.metrics["cosine"].item() == pytest.approx(1)
    assert loss.total.item() == pytest.approx(F.cross_entropy(model(adv), batch.labels).item(), rel=1e-6)
    torch.testing.assert_close(adv, images - 0.05 * model.w.detach().sign().view(3, 4, 4))


def test_zero_gradients_are_left_out():
    a = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 2.0]]).view(3, 2, 1, 1)
    b = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 3.0]]).view(3, 2, 1, 1)
    assert mean_cosine(a, b).item() == pytest.approx((0.5**0.5 + 1) / 2)
    assert mean_cosine(0 * a, b).item() == 1


def test_penalty_gradient_equals_finite_difference():
    """The penalty differentiates the random point's gradient, and the image's gradient is detached."""
    torch.manual_seed(0)
    images, labels = (x[:4] for x in color_blobs(4))
    batch = batch_of(images.double(), labels)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Softplus(), nn.Flatten(), nn.Linear(4 * 36, 3)).double()
    objective = GradAlignObjective(model, THREAT, GradAlignConfig())
    clean_grad = objective.attack(batch)[1]

    def penalty():
        return 1 - mean_cosine(clean_grad, objective.random_gradient(batch))

    weight = model[0].weight
    exact = torch.autograd.grad(penalty(), weight)[0].flatten()
    for k in (0, 17, 50):
        values = []
        for sign in (1, -2):
            weight.data.view(-1)[k] += sign * 1e-5
            values.append(penalty().item())
        weight.data.view(-1)[k] += 1e-5
        assert exact[k].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4, abs=1e-9)


def test_weight_zero_gives_fgsm_training():
    images, labels = color_blobs(6)
    model = TinyBatchNormNet().eval()
    objective = GradAlignObjective(model, THREAT, GradAlignConfig(weight=0.0))
    batch = batch_of(images, labels)
    expected = F.cross_entropy(model(objective.inner_maximization(batch)), labels)
    assert objective(batch).total.item() == pytest.approx(expected.item())
    assert GradAlign.second_derivatives
