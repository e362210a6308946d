"""Convolutions on small feature maps, compared with torch's convolution."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from robobench.models.small_map_conv import SmallMapConv2d, use_small_map_convs


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "height", "width"),
    [(3, 1, 1, 1, 1), (3, 1, 1, 2, 2), (3, 2, 1, 2, 2), (3, 2, 1, 4, 4), (3, 2, 1, 3, 4), (1, 1, 0, 2, 2),
     (1, 2, 0, 2, 2), (7, 2, 3, 4, 4), (3, 1, 1, 1, 2), (3, 1, 1, 4, 4)],
)  # fmt: skip
def test_small_map_conv_equals_conv2d_with_gradients(kernel, stride, padding, height, width):
    conv = nn.Conv2d(8, 6, kernel, stride, padding, bias=False)
    fast = nn.Sequential(copy.deepcopy(conv)).to(memory_format=torch.channels_last)
    use_small_map_convs(fast)
    assert isinstance(fast[0], SmallMapConv2d) and list(fast.state_dict()) == ["0.weight"]
    mine = torch.randn(5, 8, height, width).requires_grad_()
    theirs = mine.detach().clone().requires_grad_()
    out, expected = fast(mine), conv(theirs)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    grad = torch.randn_like(out)
    out.backward(grad)
    expected.backward(grad)
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fast[0].weight.grad, conv.weight.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", [1, 2])
def test_second_derivatives_equal_those_of_conv2d(side):
    conv = nn.Conv2d(4, 4, 3, padding=1, bias=False)
    fast = nn.Sequential(copy.deepcopy(conv))
    use_small_map_convs(fast)
    images, results = torch.randn(3, 4, side, side), []
    for model, weight in ((conv, conv.weight), (fast, fast[0].weight)):
        leaf = images.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model(leaf).sigmoid().square().sum(), leaf, create_graph=True)
        results.append(torch.autograd.grad(gradient.square().sum(), [leaf, weight]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


def test_only_plain_convolutions_are_replaced():
    model = nn.Sequential(
        nn.Conv2d(4, 4, 3, groups=2, bias=False), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, (1, 3), bias=False),
        nn.Conv2d(4, 4, 3, dilation=2, bias=False), nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect", bias=False),
        nn.Conv2d(4, 4, 3, padding="same", bias=False),
    )  # fmt: skip
    use_small_map_convs(model)
    assert not any(isinstance(layer, SmallMapConv2d) for layer in model)


@pytest.mark.parametrize(("kernel", "padding", "side"), [(3, 1, 1), (3, 1, 2), (1, 0, 2)])
def test_bf16_error_is_that_of_conv2d(kernel, padding, side):
    conv = nn.Conv2d(32, 16, kernel, padding=padding, bias=False)
    fast = nn.Sequential(copy.deepcopy(conv)).to(memory_format=torch.channels_last)
    use_small_map_convs(fast)
    images, grad = torch.randn(8, 32, side, side), torch.randn(8, 16, side, side)
    results = []
    for layer, mixed in ((conv, False), (conv, True), (fast, True)):
        mine = images.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            out = layer(mine)
        weight = next(layer.parameters())
        grads = torch.autograd.grad(out, [mine, weight], grad.to(out.dtype))
        assert out.dtype == (torch.bfloat16 if mixed else torch.float32)
        assert all(g.dtype == torch.float32 for g in grads)
        results.append([out.detach().float(), *grads])
    exact, theirs, ours = results
    for e, t, o in zip(exact, theirs, ours, strict=True):
        assert 0 < (o - e).norm() <= 1.5 * (t - e).norm()  # each product is rounded before the sum
