"""Inner maximization: the search inside training, its settings, and the modes a search must put back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robobench.api import Recipe
from robobench.errors import GradientError
from robobench.losses import errs, input_gradient
from robobench.threat import ThreatModel


@contextmanager
def eval_mode(*modules: nn.Module) -> Iterator[None]:
    """Put modules in eval mode; every submodule's own mode comes back, also after an error."""
    modes = [(m, m.training) for module in modules for m in module.modules()]
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def no_parameter_gradients(*modules: nn.Module) -> Iterator[None]:
    """Leave parameters out of the graph; a compiled network would compute their gradients whether asked or not."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    try:
        for p in parameters:
            p.requires_grad_(False)
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)


@contextmanager
def frozen(*modules: nn.Module) -> Iterator[None]:
    """Eval mode without parameter gradients, for a search that needs gradients of images only."""
    with eval_mode(*modules), no_parameter_gradients(*modules):
        yield


def slope(
    attack: str, model: nn.Module, adv: Tensor, labels: Tensor, loss: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Look once at images (B, C, H, W): a forward, and the gradient of a loss by them.

    Args:
        attack: named in errors.
        loss: logits (B, K) and the images -> (B,).

    Returns:
        The logits, the loss and its gradient (B, C, H, W), detached; infinities in the gradient are made finite, and
        NaN zero where the network errs anyway.

    Raises:
        GradientError: it is NaN at an image that is right: an attack would stand still there, and its figure would
            flatter the network.
    """
    with torch.enable_grad():
        leaf = adv.detach().requires_grad_(True)
        logits = model(leaf)
        losses = loss(logits, leaf)
        grad = torch.autograd.grad(losses.sum(), leaf)[0]
    lost = int((grad.isnan().flatten(1).any(1) & ~errs(logits.detach(), labels)).sum())
    if lost:
        raise GradientError(
            f"attack '{attack}': the gradient of {lost} of {len(grad)} images is NaN, so what it leaves means nothing; "
            "'robobench diagnose' says more, and attacks without gradients (square, noise) still serve"
        )
    return logits.detach(), losses.detach().to(grad.dtype), grad.nan_to_num()


def ascend(
    objective: Callable[[Tensor], Tensor],
    start: Tensor,
    images: Tensor,
    threat: ThreatModel,
    steps: int,
    step_size: float,
) -> Tensor:
    """Walk `steps` projected gradient steps uphill and return the last iterate, detached.

    Args:
        objective: (B, C, H, W) -> (B,), to be raised; its networks' parameters get no gradient here.
        start: first point; may lie outside the ball (the first projection brings it in).
        step_size: length of a step on the [0, 1] image scale.
    """
    adv = start.detach()
    for _ in range(steps):
        adv = threat.step(adv, input_gradient(objective, adv), step_size, images)
    return adv


@dataclass(frozen=True, kw_only=True)
class AttackedRecipe(Recipe):
    """The recipe of a defense that attacks every batch anew."""

    inner_steps: int = 10
    relative_step: float = 0.25  # of eps: 2/255 at 8/255
    attack_bn: str = "eval"  # mode of the network while it is attacked: eval | train

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("inner_steps", self.inner_steps >= 1, ">= 1")
        self.require("relative_step", self.relative_step > 0, "> 0")
        self.one_of("attack_bn", "eval", "train")

    def attacked(self, *modules: nn.Module) -> AbstractContextManager[None]:
        """Return the mode in which the networks are attacked, as a context; gradients are of images only."""
        return frozen(*modules) if self.attack_bn == "eval" else no_parameter_gradients(*modules)

    def ascend(
        self, objective: Callable[[Tensor], Tensor], start: Tensor, images: Tensor, threat: ThreatModel
    ) -> Tensor:
        """Walk the recipe's steps uphill inside `threat`, as `ascend`."""
        return ascend(objective, start, images, threat, self.inner_steps, self.relative_step * threat.eps)
