"""Modes and gradients of modules are restored after a block."""

import pytest
import torch

from robobench.core.module_state import attack_mode, eval_mode
from tests.helpers.toys import TinyBatchNormNet


def modes(net):
    return [module.training for module in net.modules()]


@pytest.mark.parametrize("guard", [eval_mode, attack_mode])
def test_mixed_modes_are_restored_after_exception(guard):
    net = TinyBatchNormNet().train()
    net.body[1].eval()
    net.head.weight.requires_grad_(False)
    before, grads = modes(net), [p.requires_grad for p in net.parameters()]
    with pytest.raises(RuntimeError, match="stop"), guard(net):
        assert not any(modes(net))
        raise RuntimeError("stop")
    assert modes(net) == before and len(set(before)) == 2
    assert [p.requires_grad for p in net.parameters()] == grads and len(set(grads)) == 2


def test_attack_mode_gives_input_gradients_only():
    net, images = TinyBatchNormNet().train(), torch.rand(2, 3, 8, 8, requires_grad=True)
    statistics = net.body[1].running_mean.clone()
    with attack_mode(net):
        net(images).sum().backward()
    assert images.grad.abs().sum() > 0
    assert all(p.grad is None for p in net.parameters())
    assert torch.equal(net.body[1].running_mean, statistics)
    assert all(p.requires_grad for p in net.parameters())


def test_eval_mode_of_two_models():
    first, second = TinyBatchNormNet().train(), TinyBatchNormNet().eval()
    with eval_mode(first, second):
        assert not any(modes(first) + modes(second))
    assert all(modes(first)) and not any(modes(second))
