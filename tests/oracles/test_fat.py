"""FAT: an image stops tau steps after it is misclassified; the others get all steps."""

import pytest
import torch

from robobench.core.threat import ThreatModel
from robobench.defenses.fat import FATConfig, FATObjective
from tests.helpers.defenses import batch_of
from tests.helpers.toys import LinearTwoClass

THREAT, SHAPE = ThreatModel("Linf", 0.05), (3, 4, 4)


def attack(bias, label, epoch=0, **changes):
    """Attack gray images of one label on a linear model; return examples, their starts and the model."""
    model = LinearTwoClass(SHAPE)
    model.bias.data.fill_(bias)
    batch = batch_of(torch.full((8, *SHAPE), 0.5), torch.full((8,), label), epoch)
    objective = FATObjective(model, THREAT, FATConfig(noise=0.0, **changes))
    start = THREAT.random_start(batch.images, batch.rng.child("start"))
    return objective.inner_maximization(batch), start, model


def test_misclassified_start_is_not_moved():
    adv, start, _ = attack(bias=10.0, label=1)
    assert torch.equal(adv, start)


def test_misclassified_image_moves_tau_steps():
    for epoch, tau in ((50, 1), (90, 2)):
        adv, start, model = attack(bias=10.0, label=1, epoch=epoch)
        ascent = model.w.detach().sign().view(SHAPE)
        expected = (start + tau * 0.0125 * ascent).clamp(0.45, 0.55)
        torch.testing.assert_close(adv, expected)


def test_correct_image_reaches_linear_optimum():
    adv, _, model = attack(bias=10.0, label=0)
    torch.testing.assert_close(adv, (0.5 - 0.05 * model.w.detach().sign().view(SHAPE)).expand_as(adv))


def test_image_stops_at_first_error():
    """The bias lies inside the reach of the attack: every example is misclassified, by less than two steps."""
    w = LinearTwoClass(SHAPE).w.detach()
    bias = 0.025 * w.abs().sum().item()
    adv, _, model = attack(bias=bias, label=0)
    gap = model.gap(adv)
    assert (gap < 0).all() and (gap > -0.0125 * w.abs().sum()).all()


def test_tau_grows_at_published_epochs():
    config = FATConfig()
    assert [config.tau(epoch) for epoch in (0, 49, 50, 89, 90, 119)] == [0, 0, 1, 1, 2, 2]


def test_noise_moves_images_inside_ball():
    model, images = LinearTwoClass(SHAPE), torch.full((8, *SHAPE), 0.5)
    model.bias.data.fill_(10.0)
    batch = batch_of(images, torch.zeros(8).long())
    adv = FATObjective(model, THREAT, FATConfig(noise=0.01)).inner_maximization(batch)
    THREAT.check(adv, images, "fat")
    assert (adv - images).abs().min().item() < 0.05 - 1e-4
    with pytest.raises(ValueError, match="noise must be >= 0"):
        FATConfig(noise=-1.0)
