"""PGD ascent inside training: it reaches the surface of the ball and stays in it."""

import pytest
import torch

from robobench.core.losses import kl
from robobench.core.module_state import eval_mode
from robobench.core.threat import ThreatModel
from robobench.training.inner_maximization import AdvTrainConfig, pgd_ascent
from tests.helpers.defenses import batch_of, skip_attack
from tests.helpers.toys import TinyBatchNormNet, color_blobs


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


def test_noise_start_is_small_and_not_clamped(monkeypatch):
    skip_attack(monkeypatch)
    batch = batch_of(torch.zeros(16, 3, 8, 8), torch.zeros(16).long())
    start = AdvTrainConfig().ascend_from_noise(lambda adv: adv, batch, ThreatModel("Linf", 0.1))
    assert start.std().item() == pytest.approx(0.001, rel=0.05) and start.min() < -0.001


@pytest.mark.parametrize("given", [True, False])
def test_kl_ascent_takes_target_or_clean_predictions(given):
    images, labels = color_blobs(12)
    torch.manual_seed(0)
    model, threat, batch = TinyBatchNormNet().train(), ThreatModel("Linf", 0.1), batch_of(images, labels, epoch=1)
    config = AdvTrainConfig(epochs=8, eps_rampup=0.5)  # half of the radius in epoch 1
    with eval_mode(model), torch.no_grad():
        target = 3 * torch.randn(12, 3) if given else model(images)
    adv = config.kl_ascent(model, batch, threat, target if given else None)
    with eval_mode(model):
        expected = config.ascend_from_noise(lambda x: kl(target, model(x)), batch, threat)
    assert torch.equal(adv, expected)
    assert threat.distance(adv, images).max().item() == pytest.approx(0.05, abs=1e-6)
    assert int(model.body[1].num_batches_tracked) == 0 and model.training
