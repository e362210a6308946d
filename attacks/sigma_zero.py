"""sigma-zero: minimum-norm attack in L0 that follows the gradient of a smooth count of the changed values.

Paper:   Cina et al., "sigma-zero: Gradient-based Optimization of l0-norm Adversarial Examples", ICLR 2025,
         arXiv:2402.01879, Algorithm 1. L0 counts values: three for a pixel whose channels all change.
Code:    github.com/Cinofix/sigma-zero-adversarial-attack, sigma_zero.py of commit 9420356: the same constants and order
         of operations, with Adam. Distances are equal in float64 on a small network.
Differs: the images after the last step count too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robobench.api import ATTACKS, AttackState, IterativeAttack, KeyedRng, loss_and_input_grad, margin, per_image

BETA_1, BETA_2 = 0.9, 0.999  # of Adam


@dataclass(frozen=True, kw_only=True)
class SigmaZeroConfig:
    steps: int = 1000
    step_size: float = 1.0  # of Adam, reduced to a tenth; eta_0 in the paper
    sigma: float = 0.001  # a change of sqrt(sigma) counts half
    threshold: float = 0.3  # smaller changes are undone, at the start; tau_0
    threshold_step: float = 0.01  # change of the threshold in a step, times the step size; t

    def __post_init__(self) -> None:
        if self.steps < 1 or not min(self.step_size, self.sigma) > 0 or not 0 <= self.threshold <= 1:
            raise ValueError(
                f"steps must be >= 1, step_size and sigma > 0 and threshold lie in [0, 1], got {self.steps}, "
                f"{self.step_size}, {self.sigma}, {self.threshold}"
            )
        if not self.threshold_step >= 0:
            raise ValueError(f"threshold_step must be >= 0, got {self.threshold_step}")


@ATTACKS.register("sigma-zero")
class SigmaZero(IterativeAttack):
    """Minimum-norm attack in L0, the number of changed values: sigma-zero, 1000 steps. For `robobench distances`."""

    Config = SigmaZeroConfig
    norms = ("L0",)
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"quick": {"steps": 100}}
    finds_closest = iterates_leave_ball = supports_compile = True

    def start(self, images: Tensor, labels: Tensor, rng: KeyedRng) -> AttackState:
        """Start at the clean image."""
        far = torch.full((len(images),), math.inf, device=images.device, dtype=images.dtype)
        memory = {"closest": images, "distance": far, "threshold": torch.full_like(far, self.config.threshold)}
        memory |= {"mean": torch.zeros_like(images), "square": torch.zeros_like(images)}
        return AttackState(images, labels, images.clone(), rng, memory)

    def step(self, model: nn.Module, state: AttackState) -> tuple[AttackState, Tensor]:
        """Take a step of Adam in the box, adapt the threshold, and undo smaller changes."""

        def loss(logits: Tensor, adv: Tensor) -> Tensor:
            square = (adv - state.images).square()
            changes: Tensor = (square / (square + self.config.sigma)).flatten(1).mean(1)
            return (-margin(logits, state.labels)).clamp_min(0) + changes

        logits, _, grad = loss_and_input_grad(self.name, model, state.adv, state.labels, loss)
        wrong, memory, images = logits.argmax(1) != state.labels, dict(state.memory), state.images
        self._keep_closest(state, wrong, memory)
        grad = grad / per_image(grad.flatten(1).abs().amax(1).clamp_min(1e-12), grad)
        memory["mean"] = BETA_1 * memory["mean"] + (1 - BETA_1) * grad
        memory["square"] = BETA_2 * memory["square"] + (1 - BETA_2) * grad.square()
        number = state.iteration + 1
        scale = (memory["square"] / (1 - BETA_2**number)).sqrt() + 1e-8
        delta = self._step_size(state.iteration) * memory["mean"] / (1 - BETA_1**number) / scale
        adv = (state.adv - delta).clamp(0, 1)
        change = self.config.threshold_step * self._step_size(number)
        memory["threshold"] = (memory["threshold"] + torch.where(wrong, change, -change)).clamp(0, 1)
        small = (adv - images).abs() < per_image(memory["threshold"], adv)
        return state.advance(torch.where(small, images, adv), **memory), logits

    def finish(self, state: AttackState, logits: Tensor) -> Tensor:
        """Return the closest adversarial example if it lies inside the ball, else the clean image."""
        memory = dict(state.memory)
        self._keep_closest(state, logits.argmax(1) != state.labels, memory)
        inside = per_image(memory["distance"] <= self.threat.eps, state.images)
        return torch.where(inside, memory["closest"], state.images)

    def _step_size(self, number: int) -> float:
        """Return the step size after `number` steps: half a cosine, from the first to a tenth of it."""
        return float(self.config.step_size) * (0.55 + 0.45 * math.cos(math.pi * number / self.steps))

    def _keep_closest(self, state: AttackState, wrong: Tensor, memory: dict[str, Tensor]) -> None:
        distance = self.threat.distance(state.adv, state.images)
        closer = wrong & (distance < memory["distance"])
        memory["distance"] = torch.where(closer, distance, memory["distance"])
        memory["closest"] = torch.where(per_image(closer, state.adv), state.adv, memory["closest"])
