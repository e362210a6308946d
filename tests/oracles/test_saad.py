"""SAAD: entropies, weights and loss by hand, and the linearized teacher of the attack."""

import math

import pytest
import torch
from torch import nn

from robobench.core.losses import kl
from robobench.defenses.saad import SAADConfig, SAADObjective, renyi_entropy
from robobench.training.base import FrozenModel
from tests.helpers.defenses import ADV, CLEAN, LABELS, THREAT, Echo, batch_of, images_of
from tests.helpers.toys import TinyBatchNormNet, color_blobs

TEACHER = FrozenModel(Echo(0.0, 2.0, 0.5))


def test_renyi_entropy_at_known_distributions():
    probs = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    for order in (1.0, 2.0, 0.5):
        torch.testing.assert_close(renyi_entropy(probs, order), torch.tensor([math.log(2), 0.0]), rtol=1e-5, atol=1e-6)
    skewed = torch.tensor([[0.75, 0.25]])
    assert renyi_entropy(skewed, 2.0).item() == pytest.approx(-math.log(0.75**2 + 0.25**2))


@pytest.mark.parametrize("beta", [0.0, 2.0])
def test_loss_equals_its_formula(beta):
    objective = SAADObjective(Echo(), THREAT, SAADConfig(beta=beta), TEACHER)
    objective.attack = lambda *_: images_of(ADV)
    loss = objective(batch_of(images_of(CLEAN), LABELS, epoch=49))
    x, adv = images_of(CLEAN), images_of(ADV)
    mirrored, student = 2 * x - adv, Echo()
    entropy = renyi_entropy(TEACHER(adv).softmax(1), 1.0)
    weight = 5 * (entropy - entropy.min())
    differences = kl(TEACHER(adv) - TEACHER(mirrored), student(adv) - student(mirrored))
    expected = weight * (kl(TEACHER(adv), student(adv)) + 50 / 200 * differences)
    expected = expected + beta * (1 - weight / weight.max()) * kl(TEACHER(x), student(x))
    assert loss.total.item() == pytest.approx(expected.mean().item(), rel=1e-5)


def test_linear_teacher_is_followed_exactly():
    """Only the logit of the true class changes; for a linear teacher of one varying logit this is exact."""

    class OneLogit(nn.Module):
        def forward(self, images):
            value = images.flatten(1).sum(1)
            return torch.stack((value, torch.zeros_like(value), torch.zeros_like(value)), dim=1)

    images, labels = color_blobs(6)[0], torch.zeros(6, dtype=torch.long)
    torch.manual_seed(0)
    teacher, student = FrozenModel(OneLogit()), TinyBatchNormNet().train()
    objective = SAADObjective(student, THREAT, SAADConfig(inner_steps=2), teacher)
    batch = batch_of(images, labels)
    adv = objective.inner_maximization(batch)
    with objective.config.inner_attack_mode(student):
        exact = objective.config.ascend_from_noise(lambda x: kl(teacher(x), student(x)), batch, THREAT)
    torch.testing.assert_close(adv, exact, rtol=0, atol=1e-6)


def test_batch_is_never_split():
    from robobench.defenses.saad import SAAD
    from tests.helpers.defenses import setup_of

    (stage,) = SAAD(SAADConfig()).stages(setup_of(required_models={"robust": TEACHER}))
    assert stage.whole_batch
