import pytest
import torch
import torchattacks
from torch import nn

import robobench
from robobench.attacks.mifgsm import DIFGSM, MIFGSM, VMIFGSM, DIFGSMConfig, MIFGSMConfig, VMIFGSMConfig
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


PLAIN = {"sifgsm": {}, "vmifgsm": {"neighbors": 2}, "tifgsm": {"kernel_size": 1}, "difgsm": {"resize_rate": 1.0}}


@pytest.mark.parametrize("name", PLAIN)
def test_variants_equal_mifgsm_on_linear_model(name):
    """A constant gradient has no variance and one direction at every scale; the others are switched off."""
    model = LinearTwoClass((3, 6, 6)).requires_grad_(False)
    images, labels = 0.3 + 0.4 * torch.rand(3, 3, 6, 6), torch.zeros(3, dtype=torch.long)
    plain = robobench.attack("mifgsm", model, images, labels, eps=0.1)
    assert torch.allclose(robobench.attack(name, model, images, labels, eps=0.1, **PLAIN[name]), plain, atol=1e-6)


TORCHATTACKS = {
    "difgsm": ("DIFGSM", {"diversity_prob": 0.0}, {"diversity_prob": 0.0}),
    "tifgsm": ("TIFGSM", {"diversity_prob": 0.0, "len_kernel": 5}, {"kernel_size": 5}),
    "sifgsm": ("SINIFGSM", {"decay": 0.0, "m": 3}, {"decay": 0.0, "scales": 3}),
}


@pytest.mark.parametrize("name", TORCHATTACKS)
def test_variants_equal_torchattacks(digits_net, digits, name):
    images, labels = digits[0][1000:1016], digits[1][1000:1016]
    theirs, their_values, values = TORCHATTACKS[name]
    shared = {"eps": 0.1, "alpha": 0.02, "steps": 4, "decay": 1.0}
    reference = getattr(torchattacks, theirs)(digits_net, **{**shared, **their_values})
    ours = robobench.attack(name, digits_net, images, labels, eps=0.1, steps=4, relative_step=0.2, **values)
    # A sum near zero may have another sign: torchattacks averages the loss over the batch.
    assert ((ours - reference(images, labels)).abs() < 1e-4).float().mean() > 0.99


def test_diversity_shrinks_and_moves_images():
    """The gradient of the mean of the resized image: its sum is the share of the area that the image covers."""

    class Mean(nn.Module):
        def forward(self, images):
            return torch.stack((-images.flatten(1).sum(1), images.flatten(1).sum(1)), 1)

    config = DIFGSMConfig(resize_rate=0.5, diversity_prob=1.0)
    attack, count = DIFGSM(config, ThreatModel("Linf", 0.1)), 40
    images, labels = torch.zeros(count, 1, 16, 16), torch.zeros(count, dtype=torch.long)
    state = attack.start(images, labels, KeyedRng.of(torch.arange(count), 0))
    _, grad, _ = attack.gradient(Mean(), state)
    area = grad.flatten(1).sum(1) / 256
    assert 0.2 < area.min() < 0.4 and 0.85 < area.max() <= 1.01
    whole = DIFGSM(DIFGSMConfig(diversity_prob=0.0), ThreatModel("Linf", 0.1)).gradient(Mean(), state)[1]
    torch.testing.assert_close(whole, torch.ones_like(whole))


def test_variance_is_neighbors_mean_minus_gradient():
    class Square(nn.Module):
        def forward(self, images):
            score = images.square().flatten(1).sum(1)
            return torch.stack((-score, score), 1)

    attack = VMIFGSM(VMIFGSMConfig(neighbors=3), ThreatModel("Linf", 0.1))
    state = attack.start(torch.full((1, 1, 2, 2), 0.5), torch.zeros(1).long(), KeyedRng.of(torch.arange(1), 0))
    first, _ = attack.step(Square(), state)
    grads = []
    for number in range(3):
        adv = 0.5 + 0.15 * (2 * state.rng.child("neighbor", 0, number).uniform(1, 2, 2) - 1)
        grads.append(attack.loss_gradient(Square(), state, adv)[1])
    expected = torch.stack(grads).mean(0) - attack.loss_gradient(Square(), state, state.adv)[1]
    torch.testing.assert_close(first.memory["variance"], expected)
    _, corrected, _ = attack.gradient(Square(), first)
    torch.testing.assert_close(corrected, attack.loss_gradient(Square(), first, first.adv)[1] + expected)
