"""Jitter: PGD on the squared distance between noisy, rescaled probabilities and the one-hot label.

Paper:   Schwinn et al., "Exploring Misclassifications of Robust Neural Networks to Enhance Adversarial Attacks", 2021,
         arXiv:2105.10304.
Code:    torchattacks; same loss, but step sizes are relative to eps.
Differs: the loss is summed over the batch, not averaged, so that an image's result does not depend on the others.
         All-zero logits give a zero gradient; torchattacks gives NaN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robobench.api import ATTACKS, AttackState, IterativeAttack, KeyedRng, loss_and_input_grad


@dataclass(frozen=True, kw_only=True)
class JitterConfig:
    steps: int = 10
    relative_step: float = 0.25  # step size / eps; 2/255 at eps 8/255
    scale: float = 10.0  # logits are rescaled to this largest absolute value; alpha in the paper
    std: float = 0.1  # of the noise added to the probabilities; sigma in the paper

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.relative_step > 0:
            raise ValueError(f"steps must be >= 1 and relative_step > 0, got {self.steps}, {self.relative_step}")
        if not self.scale > 0 or self.std < 0:
            raise ValueError(f"scale must be > 0 and std >= 0, got {self.scale}, {self.std}")


@ATTACKS.register("jitter")
class Jitter(IterativeAttack):
    """PGD on the Jitter loss: noisy, rescaled probabilities."""

    Config = JitterConfig
    version = 1
    norms = ("Linf",)

    def start(self, images: Tensor, labels: Tensor, rng: KeyedRng) -> AttackState:
        """Start at a random image in the ball."""
        return AttackState(images, labels, self.threat.random_start(images, rng), rng)

    def step(self, model: nn.Module, state: AttackState) -> tuple[AttackState, Tensor]:
        """Take a step that increases the Jitter loss."""
        logits, _, grad = loss_and_input_grad(
            self.name, model, state.adv, state.labels, lambda logits, adv: self._loss(logits, adv, state)
        )
        step_size = self.config.relative_step * self.threat.eps
        return state.advance(self.threat.step(state.adv, grad, step_size, state.images)), logits

    def _loss(self, logits: Tensor, adv: Tensor, state: AttackState) -> Tensor:
        """Return mean squared distances to the label (B,), divided by the perturbation's size if misclassified."""
        jitter = state.rng.child("logits", state.iteration).normal_like(logits)
        largest = logits.norm(p=math.inf, dim=1, keepdim=True).clamp_min(1e-12)
        probs = (self.config.scale * logits / largest).softmax(1) + self.config.std * jitter
        loss = (probs - F.one_hot(state.labels, logits.shape[1])).square().mean(1)
        distance = (adv - state.images).flatten(1).norm(p=math.inf, dim=1)
        shrink = (logits.argmax(1) != state.labels) & (distance > 0)
        return torch.where(shrink, loss / distance.clamp_min(1e-12), loss)
