"""Parts of the gallery's models: a network with functions around it, a replaced gradient, a switch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from gallery_nets import undefended  # type: ignore[import-not-found]
from torch import Tensor, nn

SIDE = 8
GRID = 16  # gray levels of the digits


def shrink(images: Tensor) -> Tensor:
    """Average images to 8 px."""
    return F.adaptive_avg_pool2d(images, SIDE)


class Masked(nn.Module):
    """A network with functions before and after it."""

    def __init__(
        self,
        net: nn.Module | None = None,
        before: Callable[[Tensor], Tensor] = lambda images: images,
        after: Callable[[Tensor], Tensor] = lambda logits: logits,
    ) -> None:
        super().__init__()
        self.net, self.before, self.after = net or undefended(), before, after

    def forward(self, images: Tensor) -> Tensor:
        return self.after(self.net(shrink(self.before(images))))


class ReplaceGradient(torch.autograd.Function):
    """Identity whose backward pass applies a function to the gradient."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(images)
        ctx.change = change
        return images.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return ctx.change(grad, ctx.saved_tensors[0]), None


def with_gradient(change: Callable[[Tensor, Tensor], Tensor]) -> nn.Module:
    """Return the undefended network with `change(gradient, images)` as its gradient."""
    return Masked(before=lambda images: ReplaceGradient.apply(images, change))


class Decoy(nn.Module):
    """The predictions of one network, the gradient of another one."""

    def __init__(self, net: nn.Module, decoy: nn.Module, scale: float = 1.0) -> None:
        super().__init__()
        self.net, self.decoy, self.scale = net, decoy, scale

    def forward(self, images: Tensor) -> Tensor:
        images = shrink(images)
        other = self.scale * self.decoy(images)
        return self.net(images).detach() + other - other.detach()


class Switch(nn.Module):
    """One of two networks, by a condition on the images and the number of earlier calls."""

    def __init__(self, condition: Callable[[Tensor, int], bool], one: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.condition, self.one, self.other, self.calls = condition, one, other, 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        chosen = self.one if self.condition(images, self.calls - 1) else self.other
        return chosen(shrink(images))


def straight_through(exact: Tensor, images: Tensor) -> Tensor:
    """Return `exact` with the gradient of `images`."""
    return exact.detach() + images - images.detach()


def hash_signs(images: Tensor) -> Tensor:
    """Return signs that change with every bit of the images."""
    return torch.sin(1e5 * images + 17 * images.flatten(1).sum(1).view(-1, 1, 1, 1)).sign()
