"""Base classes of attacks."""

import pytest
import torch

from robobench.attacks.mifgsm import MIFGSM, MIFGSMConfig
from robobench.attacks.pgd import CW, CWConfig
from robobench.core.rng import KeyedRng
from robobench.core.threat import ThreatModel
from tests.helpers.attacks import Climb, Threshold, pixels


def test_attack_full_budget_takes_all_steps():
    labels, rng = torch.zeros(4, dtype=torch.long), KeyedRng.of(torch.arange(4), 0)
    attack = Climb(None, ThreatModel("Linf", 1.0))
    adv = attack.attack_full_budget(Threshold(), pixels(0.6, 0.45, 0.25, 0.0), labels, rng)
    assert adv.flatten().tolist() == pytest.approx([0.9, 0.75, 0.55, 0.3])


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_short_reach_is_warned_about(norm):
    """Steps that cannot cross the ball: eps from the clean image, 2 eps from a random start."""
    threat = ThreatModel(norm, 0.1)
    assert MIFGSM(MIFGSMConfig(), threat).warnings() == []  # 10 steps of 0.1 eps from the clean image
    (warning,) = MIFGSM(MIFGSMConfig(steps=5), threat).warnings()
    assert "5 steps of 0.1 eps reach 0.5 eps in all; below 1 eps" in warning
    (warning,) = CW(CWConfig(steps=10, relative_step=0.1), threat).warnings()
    assert "reach 1 eps in all; below 2 eps" in warning
