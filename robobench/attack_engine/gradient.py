"""Gradients of a loss with respect to the images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from robobench.core.losses import is_misclassified
from robobench.errors import GradientError


def input_gradient(objective: Callable[[Tensor], Tensor], adv: Tensor) -> Tensor:
    """Return the gradient of the summed objective(adv) -> (B,) with respect to adv: (B, C, H, W) -> (B, C, H, W)."""
    with torch.enable_grad():
        leaf = adv.detach().requires_grad_(True)
        return torch.autograd.grad(objective(leaf).sum(), leaf)[0]


def loss_and_input_grad(
    attack: str, model: nn.Module, adv: Tensor, labels: Tensor, loss: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Run one forward and one backward pass on images adv (B, C, H, W).

    Args:
        attack: named in errors.
        loss: maps logits (B, K) and the images to (B,).

    Returns:
        Logits (B, K), loss (B,) and its gradient (B, C, H, W), all detached. Infinite gradients are made finite. NaN
        becomes zero where the image is misclassified anyway.

    Raises:
        GradientError: the gradient is NaN at a correctly classified image. The attack could not move there, which
            would overestimate robustness.
    """
    with torch.enable_grad():
        leaf = adv.detach().requires_grad_(True)
        logits = model(leaf)
        losses = loss(logits, leaf)
        grad = torch.autograd.grad(losses.sum(), leaf)[0]
    count = int((grad.isnan().flatten(1).any(1) & ~is_misclassified(logits.detach(), labels)).sum())
    if count:
        raise GradientError(
            f"attack '{attack}': the gradient of {count} of {len(grad)} images is NaN, so its result would be "
            "meaningless; run 'robobench diagnose', or use gradient-free attacks (square, noise)"
        )
    return logits.detach(), losses.detach().to(grad.dtype), grad.nan_to_num()
