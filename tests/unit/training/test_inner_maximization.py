"""PGD ascent inside training: it reaches the surface of the ball and stays in it."""

import pytest
import torch

from robobench.core.threat import ThreatModel
from robobench.training.inner_maximization import pgd_ascent


@pytest.mark.parametrize(("norm", "reach"), [("Linf", 0.1), ("L2", 0.1 / 12**0.5)])
def test_pgd_ascent_reaches_surface_of_ball(norm, reach):
    images = torch.full((2, 3, 2, 2), 0.5)
    adv = pgd_ascent(lambda x: x.flatten(1).sum(1), images, images, ThreatModel(norm, 0.1), 4, 0.04)
    torch.testing.assert_close(adv, images + reach)
    assert not adv.requires_grad


def test_first_step_projects_start_into_ball():
    images, threat = torch.full((2, 3, 2, 2), 0.5), ThreatModel("Linf", 0.1)
    adv = pgd_ascent(lambda x: -x.flatten(1).sum(1), images + 0.4, images, threat, 1, 0.01)
    threat.check(adv, images, "pgd_ascent")
