"""IGDM: the loss by its formula, its growing weight, and a pair with equal differences."""

import pytest
import torch

from robobench.core.losses import kl
from robobench.defenses.igdm import IGDMConfig, IGDMObjective
from robobench.training.base import FrozenModel
from tests.helpers.defenses import ADV, CLEAN, LABELS, THREAT, Echo, batch_of, images_of

BIAS = (0.0, 2.0, 0.5)


def loss_of(teacher, epoch):
    objective = IGDMObjective(Echo(), THREAT, IGDMConfig(epochs=100), teacher)
    objective.inner_maximization = lambda batch: images_of(ADV)
    return objective(batch_of(images_of(CLEAN), LABELS, epoch))


def test_equal_input_gradients_give_no_difference():
    """A bias changes predictions but not their differences, so the new term is zero."""
    loss = loss_of(FrozenModel(Echo(*BIAS)), epoch=99)
    assert loss.metrics["difference_kl"].abs().item() < 1e-6
    assert loss.total.item() == pytest.approx(loss.metrics["adv_kl"].item(), abs=1e-6)


@pytest.mark.parametrize("epoch", [0, 49, 99])
def test_term_grows_with_epoch(epoch):
    model = Echo(*BIAS)
    model.scale.data.copy_(torch.tensor([0.5, 2.0, 1.0]))
    teacher, student = FrozenModel(model), Echo()
    x, adv = images_of(CLEAN), images_of(ADV)
    minus = 2 * x - adv
    difference = kl(teacher(adv) - teacher(minus), student(adv) - student(minus)).mean().item()
    adv_kl = kl(teacher(adv), student(adv)).mean().item()
    assert difference > 0.01
    assert loss_of(teacher, epoch).total.item() == pytest.approx(adv_kl + (epoch + 1) / 100 * difference, rel=1e-5)
