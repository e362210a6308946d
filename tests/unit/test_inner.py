"""Inner maximization puts back the modes and gradients it found."""

import pytest
import torch

from robobench.core.module_state import attack_mode, eval_mode
from robobench.core.threat import ThreatModel
from robobench.inner import input_gradient
from robobench.training.inner_maximization import pgd_ascent
from tests.helpers.toys import TinyBatchNormNet


def modes(net):
    return [module.training for module in net.modules()]


@pytest.mark.parametrize("guard", [eval_mode, attack_mode])
def test_mixed_modes_come_back_after_an_exception(guard):
    net = TinyBatchNormNet().train()
    net.body[1].eval()
    net.head.weight.requires_grad_(False)
    before, grads = modes(net), [p.requires_grad for p in net.parameters()]
    with pytest.raises(RuntimeError, match="stop"), guard(net):
        assert not any(modes(net))
        raise RuntimeError("stop")
    assert modes(net) == before and len(set(before)) == 2
    assert [p.requires_grad for p in net.parameters()] == grads and len(set(grads)) == 2


def test_a_frozen_network_gives_gradients_of_images_and_none_of_parameters():
    net, images = TinyBatchNormNet().train(), torch.rand(2, 3, 8, 8, requires_grad=True)
    statistics = net.body[1].running_mean.clone()
    with attack_mode(net):
        net(images).sum().backward()
    assert images.grad.abs().sum() > 0
    assert all(p.grad is None for p in net.parameters())
    assert torch.equal(net.body[1].running_mean, statistics)
    assert all(p.requires_grad for p in net.parameters())


def test_two_networks_are_guarded_together():
    first, second = TinyBatchNormNet().train(), TinyBatchNormNet().eval()
    with eval_mode(first, second):
        assert not any(modes(first) + modes(second))
    assert all(modes(first)) and not any(modes(second))


def test_the_input_gradient_is_that_of_the_sum_also_without_grad_mode():
    images = torch.rand(2, 3, 2, 2)
    with torch.no_grad():
        grad = input_gradient(lambda adv: adv.square().flatten(1).sum(1), images)
    torch.testing.assert_close(grad, 2 * images)
    assert not images.requires_grad


@pytest.mark.parametrize(("norm", "reach"), [("Linf", 0.1), ("L2", 0.1 / 12**0.5)])
def test_ascent_on_a_sum_ends_on_the_surface_of_the_ball(norm, reach):
    images = torch.full((2, 3, 2, 2), 0.5)
    adv = pgd_ascent(lambda x: x.flatten(1).sum(1), images, images, ThreatModel(norm, 0.1), 4, 0.04)
    torch.testing.assert_close(adv, images + reach)
    assert not adv.requires_grad


def test_a_start_outside_the_ball_is_brought_in_by_the_first_step():
    images, threat = torch.full((2, 3, 2, 2), 0.5), ThreatModel("Linf", 0.1)
    threat.check(pgd_ascent(lambda x: -x.flatten(1).sum(1), images + 0.4, images, threat, 1, 0.01), images, "ascend")
