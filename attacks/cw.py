"""CW: projected gradient ascent on the margin between the best other logit and the label's.

Paper:   Carlini and Wagner, "Towards Evaluating the Robustness of Neural Networks", IEEE S&P 2017,
         arXiv:1608.04644: the loss f6; as PGD's loss in Madry et al., ICLR 2018, arXiv:1706.06083.
Differs: the radius is given, so there is no search over the constant c, and the margin is not clipped.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robobench.api import ATTACKS, IterativeAttack
from robobench.losses import margin
from robobench.randomness import Noise
from robobench.search import State


@dataclass(frozen=True, kw_only=True)
class CWConfig:
    steps: int = 40
    relative_step: float = 0.25  # of eps: 2/255 at 8/255
    restarts: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1 or not self.relative_step > 0:
            raise ValueError(
                f"steps and restarts must be >= 1 and relative_step > 0, got {self.steps}, "
                f"{self.restarts}, {self.relative_step}"
            )


@ATTACKS.register("cw")
class CW(IterativeAttack):
    """PGD on the margin loss of Carlini and Wagner, Linf and L2."""

    Config = CWConfig

    def start(self, images: Tensor, labels: Tensor, noise: Noise) -> State:
        """Start anywhere in the ball."""
        return State(images, labels, self.threat.random_start(images, noise), noise)

    def step(self, model: nn.Module, state: State) -> tuple[State, Tensor]:
        """Step up the margin; one forward serves the gradient and the caller's success check."""
        with torch.enable_grad():
            adv = state.adv.detach().requires_grad_(True)
            logits = model(adv)
            grad = torch.autograd.grad(margin(logits, state.labels).sum(), adv)[0]
        length = self.config.relative_step * self.threat.eps
        return state.moved(self.threat.step(state.adv, grad, length, state.images)), logits.detach()
