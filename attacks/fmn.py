"""FMN: minimum-norm attack that follows the gradient of the margin inside a ball whose radius it adapts.

Paper:   Pintor et al., "Fast Minimum-norm Adversarial Attacks through Adaptive Norm Constraints", NeurIPS 2021,
         arXiv:2102.12827, Algorithm 1.
Differs: every image starts at the clean one. The estimated distance to the boundary is lengthened by gamma, since
         otherwise the iterates may approach the boundary and never cross it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robobench.api import ATTACKS, AttackState, IterativeAttack, KeyedRng, loss_and_input_grad, margin, per_image


@dataclass(frozen=True, kw_only=True)
class FMNConfig:
    steps: int = 100
    step_size: float = 1.0  # L2 length of the first step, reduced to a hundredth; alpha in the paper
    gamma: float = 0.05  # the radius changes by this fraction in the first step, later by less
    gamma_final: float = 0.001

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.step_size > 0 or not 0 < self.gamma_final <= self.gamma < 1:
            raise ValueError(
                f"steps must be >= 1, step_size > 0 and 0 < gamma_final <= gamma < 1, got {self.steps}, "
                f"{self.step_size}, {self.gamma_final}, {self.gamma}"
            )


@ATTACKS.register("fmn")
class FMN(IterativeAttack):
    """Fast minimum-norm attack in L2 and Linf, 100 steps."""

    Config = FMNConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"quick": {"steps": 20}}
    finds_closest = iterates_leave_ball = supports_compile = True

    @property
    def relative_step(self) -> None:
        """The steps do not depend on eps."""
        return None

    def start(self, images: Tensor, labels: Tensor, rng: KeyedRng) -> AttackState:
        """Start at the clean image with an infinite radius."""
        far = torch.full((len(images),), math.inf, device=images.device, dtype=images.dtype)
        return AttackState(images, labels, images.clone(), rng, {"closest": images, "distance": far, "radius": far})

    def step(self, model: nn.Module, state: AttackState) -> tuple[AttackState, Tensor]:
        """Adapt the radius, step along the gradient of the margin, and project onto the ball and the box."""
        logits, gap, grad = loss_and_input_grad(
            self.name, model, state.adv, state.labels, lambda logits, _: margin(logits, state.labels)
        )
        wrong, memory, images = logits.argmax(1) != state.labels, dict(state.memory), state.images
        self._keep_closest(state, wrong, memory)
        cosine = (1 + math.cos(math.pi * state.iteration / self.steps)) / 2
        gamma = self.config.gamma_final + (self.config.gamma - self.config.gamma_final) * cosine
        dual = grad.flatten(1).norm(p=1 if self.threat.norm == "Linf" else 2, dim=1).clamp_min(1e-12)
        estimate = self.threat.distance(state.adv, images) + gap.abs() / dual  # of the distance to the boundary
        outside = torch.where(memory["distance"].isinf(), estimate, memory["radius"]) * (1 + gamma)
        inside = torch.minimum(memory["radius"] * (1 - gamma), memory["distance"])
        largest = self.threat.distance(torch.maximum(images, 1 - images), torch.zeros_like(images))
        memory["radius"] = torch.minimum(torch.where(wrong, inside, outside), largest)
        step_size = self.config.step_size * (0.01 + 0.99 * cosine)
        unit = grad / per_image(grad.flatten(1).norm(dim=1).clamp_min(1e-12), grad)
        delta = self._shorten(state.adv + step_size * unit - images, memory["radius"])
        return state.advance((images + delta).clamp_(0, 1), **memory), logits

    def finish(self, state: AttackState, logits: Tensor) -> Tensor:
        """Return the closest adversarial example if it lies inside the ball, else the clean image."""
        memory = dict(state.memory)
        self._keep_closest(state, logits.argmax(1) != state.labels, memory)
        inside = per_image(memory["distance"] <= self.threat.eps, state.images)
        return torch.where(inside, memory["closest"], state.images)

    def _keep_closest(self, state: AttackState, wrong: Tensor, memory: dict[str, Tensor]) -> None:
        distance = self.threat.distance(state.adv, state.images)
        closer = wrong & (distance < memory["distance"])
        memory["distance"] = torch.where(closer, distance, memory["distance"])
        memory["closest"] = torch.where(per_image(closer, state.adv), state.adv, memory["closest"])

    def _shorten(self, delta: Tensor, radius: Tensor) -> Tensor:
        """Project perturbations onto balls of radius (B,)."""
        if self.threat.norm == "Linf":
            limit = per_image(radius, delta)
            return torch.maximum(torch.minimum(delta, limit), -limit)
        length = delta.flatten(1).norm(dim=1).clamp_min(1e-12)
        return delta * per_image((radius / length).clamp_max(1), delta)
