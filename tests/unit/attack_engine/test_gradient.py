"""Gradients of the images: under no_grad, and if they are NaN."""

import pytest
import torch
from torch import nn

from robobench.attack_engine.gradient import input_gradient
from robobench.core.rng import KeyedRng
from robobench.core.threat import ThreatModel
from robobench.errors import GradientError, ThreatModelError
from robobench.plugins.discovery import load_attack

GRADIENT_ATTACKS = ["pgd", "cw", "fgsm", "mifgsm", "apgd-ce", "fab-t", "autoattack"]


class Cusp(nn.Module):
    """Predicts class 1 above gray; the gradient is NaN everywhere."""

    def forward(self, images):
        gap = (images - 0.5).flatten(1).mean(1) + (0 * (images - images.detach())).flatten(1).sum(1).sqrt()
        return torch.stack((-gap, gap), dim=1)


def make_attack(name, norm):
    cls = load_attack(name)
    return cls(cls.Config(**{"steps": 10} if hasattr(cls.Config(), "steps") else {}), ThreatModel(norm, 0.1))


@pytest.mark.parametrize(
    ("name", "norm"), [("jitter", "Linf"), *((name, norm) for name in GRADIENT_ATTACKS for norm in ("Linf", "L2"))]
)
def test_nan_gradient_raises(name, norm):
    images, labels = torch.full((2, 3, 8, 8), 0.2), torch.zeros(2, dtype=torch.long)
    with pytest.raises(GradientError, match="the gradient of 2 of 2 images is NaN"):
        make_attack(name, norm).attack_early_stop(Cusp(), images, labels, KeyedRng.of(torch.arange(2), 0))


@pytest.mark.parametrize("name", GRADIENT_ATTACKS)
def test_nan_logits_allow_nan_gradient(name):
    """Where the logits are NaN the attack has succeeded, whatever the gradient is."""

    class Edge(nn.Module):
        def forward(self, images):
            gap = (images - 0.5).flatten(1).mean(1)
            return torch.stack((-gap, gap + torch.where(gap > -0.05, torch.nan, 0.0)), dim=1)

    images, labels = torch.stack((torch.full((3, 8, 8), 0.42), torch.full((3, 8, 8), 0.1))), torch.zeros(2).long()
    result = make_attack(name, "Linf").attack_early_stop(Edge(), images, labels, KeyedRng.of(torch.arange(2), 0))
    assert result.success.tolist() == [True, False]


def test_step_along_nan_gradient_is_refused():
    """A third-party attack that does not check its gradients fails the threat model check."""
    images = torch.full((2, 3, 8, 8), 0.2)
    threat = ThreatModel("Linf", 0.1)
    with pytest.raises(ThreatModelError, match="not finite"):
        threat.check(threat.step(images, torch.full_like(images, torch.nan), 0.1, images), images, "attack 'a'")


def test_input_gradient_works_under_no_grad():
    images = torch.rand(2, 3, 2, 2)
    with torch.no_grad():
        grad = input_gradient(lambda adv: adv.square().flatten(1).sum(1), images)
    torch.testing.assert_close(grad, 2 * images)
    assert not images.requires_grad
