"""On a linear model the worst case is known: the logit gap falls by eps times the dual norm of the weight."""

import pytest
import torch

from robobench.attacks.fgsm import FGSM
from robobench.attacks.pgd import PGD, PGDConfig
from robobench.core.rng import KeyedRng
from robobench.core.threat import ThreatModel
from robobench.plugins.discovery import load_attack
from tests.helpers.toys import LinearTwoClass

SHAPE, EPS = (3, 6, 6), 0.05
DUAL = {"Linf": 1, "L2": 2}


@pytest.fixture
def model():
    return LinearTwoClass(SHAPE).eval().requires_grad_(False)


def images_with_gaps(model, gaps):
    """Images whose logit gaps are the given ones, off the gray image along the weight: far from the box."""
    return 0.5 + (gaps[:, None] * model.w / model.w.square().sum()).view(-1, *SHAPE)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("name", ["pgd", "fgsm"])
def test_a_gradient_attack_reaches_the_closed_form_optimum(model, name, norm):
    threat, labels = ThreatModel(norm, EPS), torch.zeros(5, dtype=torch.long)
    images = torch.full((5, *SHAPE), 0.5)
    attack = PGD(PGDConfig(steps=40), threat) if name == "pgd" else FGSM(FGSM.Config(), threat)
    adv = attack.attack_full_budget(model, images, labels, KeyedRng.of(torch.arange(5), name))
    drop = model.gap(images) - model.gap(adv)
    # PGD in L2 turns towards the optimum at a finite rate; 40 steps leave less than a thousandth.
    torch.testing.assert_close(drop, (EPS * model.w.norm(DUAL[norm])).expand(5), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_a_transfer_set_of_autoattack_takes_every_image_as_far_as_it_goes(model, norm):
    reach = EPS * model.w.norm(DUAL[norm])
    factors = torch.tensor([-0.5, 0.1, 0.9, 1.5])  # wrong when clean, soon wrong, late wrong, out of reach
    images, labels = images_with_gaps(model, factors * reach), torch.zeros(4, dtype=torch.long)
    cls = load_attack("autoattack")
    attack = cls(cls.Config(queries=20), ThreatModel(norm, EPS))
    rng = KeyedRng.of(torch.arange(4), "autoattack")
    drop = model.gap(images) - model.gap(attack.attack_full_budget(model, images, labels, rng))
    torch.testing.assert_close(drop, reach.expand(4), rtol=1e-3, atol=1e-6)
    early = model.gap(images) - model.gap(attack.attack_early_stop(model, images, labels, rng).adv)
    assert early[0] == 0 and early[3] == 0  # for verdicts these stay


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("name", ["pgd", "apgd-ce", "autoattack"])
def test_the_accuracy_left_is_the_closed_form(model, name, norm):
    reach = EPS * model.w.norm(DUAL[norm])
    factors = torch.tensor([0.2, 0.6, 0.9, 0.98, 1.02, 1.1, 1.5, 2.0])  # of what the adversary can reach
    images, labels = images_with_gaps(model, factors * reach), torch.zeros(8, dtype=torch.long)
    assert images.min() - EPS > 0 and images.max() + EPS < 1
    values = {"pgd": {"steps": 40}, "apgd-ce": {}, "autoattack": {"queries": 30, "targets": 1}}[name]
    cls, threat = load_attack(name), ThreatModel(norm, EPS)
    found = cls(cls.Config(**values), threat).attack_early_stop(
        model, images, labels, KeyedRng.of(torch.arange(8), name)
    )
    threat.check(found.adv, images, name)
    assert (model(found.adv).argmax(1) == labels).tolist() == (~found.success).tolist() == (factors > 1).tolist()
