import pytest
import torch

from robobench.attacks.mifgsm import MIFGSM, MIFGSMConfig
from robobench.core.rng import KeyedRng
from robobench.core.threat import ThreatModel
from tests.helpers.attacks import gap_drop
from tests.helpers.toys import LinearTwoClass


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_mifgsm_reaches_linear_optimum(norm):
    drop, optimum = gap_drop(MIFGSM(MIFGSMConfig(), ThreatModel(norm, 0.05)))
    torch.testing.assert_close(drop, optimum, rtol=2e-3, atol=1e-6)


def test_momentum_is_decayed_sum_of_unit_gradients():
    model, attack = LinearTwoClass((1, 2, 2)), MIFGSM(MIFGSMConfig(decay=0.5), ThreatModel("Linf", 0.1))
    state = attack.start(torch.full((1, 1, 2, 2), 0.5), torch.zeros(1).long(), KeyedRng.of(torch.arange(1), 0))
    for _ in range(3):
        state, _ = attack.step(model, state)
    unit = (-model.w / model.w.norm(1)).view(1, 1, 2, 2)
    torch.testing.assert_close(state.memory["momentum"], 1.75 * unit.detach())
    torch.testing.assert_close(state.adv, 0.5 + 0.03 * unit.sign())
