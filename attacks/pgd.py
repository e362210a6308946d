"""PGD: projected gradient ascent on the cross-entropy from a random start.

Paper:   Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018,
         arXiv:1706.06083.
Code:    the steps are those of torchattacks' PGD (Linf) and PGDL2; the length of a step is a fraction of eps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robobench.api import ATTACKS, IterativeAttack
from robobench.randomness import Noise
from robobench.search import State


@dataclass(frozen=True, kw_only=True)
class PGDConfig:
    steps: int = 20
    relative_step: float = 0.25  # of eps: 2/255 at 8/255
    restarts: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1 or not self.relative_step > 0:
            raise ValueError(
                f"steps and restarts must be >= 1 and relative_step > 0, got {self.steps}, "
                f"{self.restarts}, {self.relative_step}"
            )


@ATTACKS.register("pgd")
class PGD(IterativeAttack):
    """Untargeted PGD on the cross-entropy."""

    Config = PGDConfig
    version = 1
    presets: ClassVar = {"quick:large": {"steps": 10}}

    def start(self, images: Tensor, labels: Tensor, noise: Noise) -> State:
        """Start anywhere in the ball."""
        return State(images, labels, self.threat.random_start(images, noise), noise)

    def step(self, model: nn.Module, state: State) -> tuple[State, Tensor]:
        """Step up the cross-entropy; one forward serves the gradient and the caller's success check."""
        with torch.enable_grad():
            adv = state.adv.detach().requires_grad_(True)
            logits = model(adv)
            grad = torch.autograd.grad(F.cross_entropy(logits, state.labels, reduction="sum"), adv)[0]
        length = self.config.relative_step * self.threat.eps
        return state.moved(self.threat.step(state.adv, grad, length, state.images)), logits.detach()
