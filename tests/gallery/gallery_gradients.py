"""Models of the gallery whose gradient is not that of their predictions."""

from __future__ import annotations

import math

import torch
from gallery_nets import adversarially_trained, undefended  # type: ignore[import-not-found]
from gallery_parts import GRID, Decoy, Masked, Switch, hash_signs, with_gradient  # type: ignore[import-not-found]
from torch import Tensor, nn


def wrong_sign(k: int) -> nn.Module:
    """The gradient has the wrong sign."""
    return with_gradient(lambda grad, _: -grad)


def random_gradient(k: int) -> nn.Module:
    """The gradient is Gaussian noise."""
    return with_gradient(lambda grad, _: torch.randn_like(grad))


def small_random_gradient(k: int) -> nn.Module:
    """The gradient is noise of size 1e-12."""
    return with_gradient(lambda grad, _: 1e-12 * torch.randn_like(grad))


def hashed_gradient(k: int) -> nn.Module:
    """The gradient has the right size, and its signs are a hash of the image."""
    return with_gradient(lambda grad, images: grad.abs() * hash_signs(images))


def hashed_but_uphill(k: int) -> nn.Module:
    """A hashed gradient to which a tenth of the true one is added."""
    return with_gradient(lambda grad, images: grad.abs().amax() * hash_signs(images) + 0.1 * grad)


def border_gradient(k: int) -> nn.Module:
    """Only the two outermost pixels have a gradient."""

    def change(grad: Tensor, _: Tensor) -> Tensor:
        inner = torch.zeros_like(grad)
        inner[..., 2:-2, 2:-2] = 1
        return grad * (1 - inner)

    return with_gradient(change)


def shuffled_gradient(k: int) -> nn.Module:
    """The gradient belongs to mirrored images."""
    return with_gradient(lambda grad, _: grad.flip(3))


def underflowing_gradient(k: int) -> nn.Module:
    """The gradient is multiplied by 1e-44."""
    return with_gradient(lambda grad, _: grad * 1e-30 * 1e-14)


def nan_gradient(k: int) -> nn.Module:
    """The gradient is NaN."""
    return with_gradient(lambda grad, _: grad * math.nan)


def cut_graph(k: int) -> nn.Module:
    """forward() detaches the images."""
    return Masked(before=lambda images: images.detach())


def new_leaf(k: int) -> nn.Module:
    """forward() makes a new leaf of the images."""
    return Masked(before=lambda images: images.detach().requires_grad_())


def no_grad(k: int) -> nn.Module:
    """forward() runs without autograd."""

    class NoGrad(Masked):
        @torch.no_grad()
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images)

    return NoGrad()


def constant_decoy(k: int) -> nn.Module:
    """Straight-through gradient of a random linear map."""
    torch.manual_seed(0)
    decoy = nn.Sequential(nn.Flatten(), nn.Linear(192, 10)).requires_grad_(False)
    return Decoy(undefended(), decoy)


def other_decoy(k: int) -> nn.Module:
    """Straight-through gradient of another undefended network."""
    return Decoy(undefended(), undefended(1))


def robust_decoy(k: int) -> nn.Module:
    """Straight-through gradient of an adversarially trained network."""
    return Decoy(undefended(), adversarially_trained())


def scaled_decoy(k: int) -> nn.Module:
    """Straight-through gradient of another network, scaled so that a signed step changes the logits as predicted."""
    return Decoy(undefended(), undefended(1), 0.3)


def grad_mode(k: int) -> nn.Module:
    """Another network answers when autograd is on."""
    return Switch(lambda images, _: torch.is_grad_enabled(), adversarially_trained(), undefended())


def requires_grad(k: int) -> nn.Module:
    """Another network answers when the images require a gradient."""
    return Switch(lambda images, _: images.requires_grad, adversarially_trained(), undefended())


def one_class_gradient(k: int) -> nn.Module:
    """Only the logit of class 0 has a gradient."""
    return Masked(after=lambda z: torch.cat((z[:, :1], z[:, 1:].detach()), 1))


def predicted_class_gradient(k: int) -> nn.Module:
    """Only the largest logit has a gradient, and it is that of class 0."""
    return Masked(after=lambda z: z.detach() + z[:, :1] - z[:, :1].detach())


def gradient_off_grid(k: int) -> nn.Module:
    """The gradient is right at images on the grid of gray levels, and has the wrong sign elsewhere."""

    def change(grad: Tensor, images: Tensor) -> Tensor:
        on_grid = ((images * GRID * 4).frac().abs() < 1e-4).flatten(1).float().mean(1) > 0.9
        return torch.where(on_grid.view(-1, 1, 1, 1), grad, -grad)

    return with_gradient(change)
