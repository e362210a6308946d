"""Checks of a model that need no attack."""

import torch
from torch import nn

from robobench.evaluation.model_checks import quick_model_checks


class Noisy(nn.Module):
    """A model with Gaussian noise on its input."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, images):
        return self.net(images + torch.randn_like(images))


def test_random_model_is_not_called_batch_dependent(digits_net, digits):
    """The checks also leave torch's global generator as it was."""
    before, images, labels = torch.get_rng_state(), digits[0][1000:1040], digits[1][1000:1040]
    found = {f.check.name: f.raised for f in quick_model_checks(Noisy(digits_net).eval(), images, labels)}
    assert found["random-output"] and "batch-dependent" not in found
    assert torch.equal(torch.get_rng_state(), before)
