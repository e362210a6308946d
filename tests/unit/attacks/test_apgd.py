import pytest
import torch
from torch import nn

import robobench
from robobench.errors import RequestError


def test_too_few_classes_are_refused():
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    with pytest.raises(RequestError, match="'apgd-t' needs at least 4 classes, the model has 3; use apgd-ce"):
        robobench.attack("apgd-t", net, torch.rand(2, 3, 2, 2), torch.zeros(2).long(), eps="8/255")
