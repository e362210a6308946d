"""Linear models have a known worst case: the logit gap decreases by eps times the dual norm of the weight."""

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
    """Return images with given logit gaps: gray plus a multiple of the weight, far from 0 and 1."""
    return 0.5 + (gaps[:, None] * model.w / model.w.square().sum()).view(-1, *SHAPE)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("name", ["pgd", "fgsm"])
def test_gradient_attack_reaches_optimum(model, name, norm):
    threat, labels = ThreatModel(norm, EPS), torch.zeros(5, dtype=torch.long)
    images = torch.full((5, *SHAPE), 0.5)
    attack = PGD(PGDConfig(steps=40), threat) if name == "pgd" else FGSM(FGSM.Config(), threat)
    adv = attack.attack_full_budget(model, images, labels, KeyedRng.of(torch.arange(5), name))
    drop = model.gap(images) - model.gap(adv)
    # PGD in L2 converges to the optimum; 40 steps leave an error below 0.001.
    torch.testing.assert_close(drop, (EPS * model.w.norm(DUAL[norm])).expand(5), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_autoattack_full_budget_reaches_optimum(model, norm):
    """Transfer examples use the full budget, also if the clean image is misclassified or cannot be attacked."""
    reach = EPS * model.w.norm(DUAL[norm])
    factors = torch.tensor([-0.5, 0.1, 0.9, 1.5])  # misclassified when clean, early, late, never
    images, labels = images_with_gaps(model, factors * reach), torch.zeros(4, dtype=torch.long)
    cls = load_attack("autoattack")
    attack = cls(cls.Config(queries=20), ThreatModel(norm, EPS))
    rng = KeyedRng.of(torch.arange(4), "autoattack")
    drop = model.gap(images) - model.gap(attack.attack_full_budget(model, images, labels, rng))
    torch.testing.assert_close(drop, reach.expand(4), rtol=1e-3, atol=1e-6)
    early = model.gap(images) - model.gap(attack.attack_early_stop(model, images, labels, rng).adv)
    assert early[0] == 0 and early[3] == 0  # the white-box attack leaves these unchanged


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("name", ["pgd", "apgd-ce", "autoattack"])
def test_robust_accuracy_is_closed_form(model, name, norm):
    reach = EPS * model.w.norm(DUAL[norm])
    factors = torch.tensor([0.2, 0.6, 0.9, 0.98, 1.02, 1.1, 1.5, 2.0])  # of the largest possible decrease
    images, labels = images_with_gaps(model, factors * reach), torch.zeros(8, dtype=torch.long)
    assert images.min() - EPS > 0 and images.max() + EPS < 1
    values = {"pgd": {"steps": 40}, "apgd-ce": {}, "autoattack": {"queries": 30, "targets": 1}}[name]
    cls, threat = load_attack(name), ThreatModel(norm, EPS)
    attack, rng = cls(cls.Config(**values), threat), KeyedRng.of(torch.arange(8), name)
    result = attack.attack_early_stop(model, images, labels, rng)
    threat.check(result.adv, images, name)
    assert (model(result.adv).argmax(1) == labels).tolist() == (~result.success).tolist() == (factors > 1).tolist()
