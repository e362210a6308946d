"""The network definitions that timm does not have."""

import pytest
import torch
from torch import nn

from robobench.models.networks import wide_resnet


def test_wrn_34_10_has_published_layers_and_parameters():
    with torch.device("meta"):
        net = wide_resnet(34, 10)
    # Zagoruyko and Komodakis count all convolutions, including the three 1x1 shortcuts.
    assert sum(isinstance(m, nn.Conv2d) for m in net.modules()) == 34
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(46.15, abs=0.01)
