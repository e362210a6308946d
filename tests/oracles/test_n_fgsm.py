"""N-FGSM: noise of twice the radius, one step of eps, no projection to the ball."""

import pytest
import torch

from robobench.core.threat import ThreatModel
from robobench.defenses.n_fgsm import NFGSMConfig, NFGSMObjective
from tests.helpers.defenses import batch_of
from tests.helpers.toys import LinearTwoClass

THREAT = ThreatModel("Linf", 0.05)


def perturbation(threat=THREAT, value=0.5, **changes):
    model, images = LinearTwoClass((3, 4, 4)), torch.full((64, 3, 4, 4), value)
    objective = NFGSMObjective(model, threat, NFGSMConfig(**changes))
    return objective.perturb(batch_of(images, torch.zeros(64).long())) - images, model


def test_perturbation_is_noise_plus_signed_step():
    delta, model = perturbation()
    noise = delta + 0.05 * model.w.detach().sign().view(3, 4, 4)  # the loss of class 0 grows against w
    assert noise.abs().max() <= 0.1 + 1e-6
    assert noise.abs().mean().item() == pytest.approx(0.05, rel=0.05)  # the mean of |U(-0.1, 0.1)|
    assert delta.abs().max() > 2 * 0.05  # outside the ball


def test_images_stay_in_pixel_range():
    delta, _ = perturbation(value=0.99)
    assert delta.max() <= 0.01 + 1e-6 and delta.min() < -0.1


def test_without_noise_it_is_fgsm():
    delta, model = perturbation(noise=0.0)
    torch.testing.assert_close(delta, -0.05 * model.w.detach().sign().view(1, 3, 4, 4).expand_as(delta))


def test_l2_reaches_at_most_three_radii():
    delta, _ = perturbation(ThreatModel("L2", 0.05))
    lengths = delta.flatten(1).norm(dim=1)
    assert 0.05 < lengths.max() <= 0.15 + 1e-6
    assert perturbation(ThreatModel("L2", 0.0))[0].abs().max() == 0
