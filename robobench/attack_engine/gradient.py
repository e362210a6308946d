"""Gradients of a loss with respect to the images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from robobench.attack_engine.randomized import RandomizedModel
from robobench.core.losses import is_misclassified
from robobench.core.soft_labels import attack_loss
from robobench.errors import GradientError

NO_GRADIENT = (
    "no gradient of the logits reaches the images (one-hot or integer outputs, detach() or no_grad in forward()); "
    "give a differentiable replacement of the model (--bpda), or use query attacks: --attacks square,noise"
)
TORCH_ERRORS = ("does not require grad", "not have been used in the graph")  # of a graph that misses the images


@contextmanager
def explain_missing_gradient(attack: str) -> Iterator[None]:
    """Raise GradientError instead of torch's error if no gradient of the logits reaches the images."""
    try:
        yield
    except RuntimeError as err:
        if not any(text in str(err) for text in TORCH_ERRORS):
            raise
        raise GradientError(f"attack '{attack}': {NO_GRADIENT}") from err


def input_gradient(objective: Callable[[Tensor], Tensor], adv: Tensor) -> Tensor:
    """Return the gradient of the summed objective(adv) -> (B,) with respect to adv: (B, C, H, W) -> (B, C, H, W)."""
    with torch.enable_grad(), attack_loss():
        leaf = adv.detach().requires_grad_(True)
        return torch.autograd.grad(objective(leaf).sum(), leaf)[0]


def loss_and_input_grad(
    attack: str, model: nn.Module, adv: Tensor, labels: Tensor, loss: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Run one forward and one backward pass on images adv (B, C, H, W).

    Args:
        attack: named in errors.
        model: the results of a `RandomizedModel` are means over its passes.
        loss: maps logits (B, K) and the images to (B,).

    Returns:
        Logits (B, K), loss (B,) and its gradient (B, C, H, W), all detached. Infinite gradients are made finite. NaN
        becomes zero where the image is misclassified anyway.

    Raises:
        GradientError: the gradient is NaN at a correctly classified image, or no gradient of the logits reaches the
            images. The attack could not move there, which would overestimate robustness.
    """
    if isinstance(model, RandomizedModel):
        passes = [loss_and_input_grad(attack, model.model, adv, labels, loss) for _ in range(model.randomness.eot)]
        logits, losses, grad = (torch.stack(values).mean(0) for values in zip(*passes, strict=True))
        return logits, losses, grad
    with torch.enable_grad(), explain_missing_gradient(attack):
        leaf, direct = adv.detach().requires_grad_(True), adv.detach().requires_grad_(True)
        logits = model(leaf)
        losses = loss(logits, direct)  # a loss of the images alone must not hide that the logits have no gradient
        through_model, through_loss = torch.autograd.grad(losses.sum(), (leaf, direct), allow_unused=True)
        if through_model is None:
            raise GradientError(f"attack '{attack}': {NO_GRADIENT}")
        grad = through_model if through_loss is None else through_model + through_loss
    count = int((grad.isnan().flatten(1).any(1) & ~is_misclassified(logits.detach(), labels)).sum())
    if count:
        raise GradientError(
            f"attack '{attack}': the gradient of {count} of {len(grad)} images is NaN, so its result would be "
            "meaningless; run 'robobench diagnose', or use gradient-free attacks (square, noise)"
        )
    return logits.detach(), losses.detach().to(grad.dtype), grad.nan_to_num()
