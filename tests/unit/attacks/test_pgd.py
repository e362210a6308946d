import pytest
import torch

from robobench.attacks.pgd import CW, CWConfig
from robobench.core.threat import ThreatModel
from tests.helpers.attacks import gap_drop


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_cw_reaches_linear_optimum(norm):
    drop, optimum = gap_drop(CW(CWConfig(), ThreatModel(norm, 0.05)))
    torch.testing.assert_close(drop, optimum, rtol=2e-3, atol=1e-6)
