"""DDN: minimum-norm attack in L2 that separates the direction of the perturbation from its length.

Paper:   Rony et al., "Decoupling Direction and Norm for Efficient Gradient-Based L2 Adversarial Attacks and Defenses",
         CVPR 2019, arXiv:1811.09600, Algorithm 1.
Code:    github.com/jeromerony/fast_adversarial; same constants and order of operations.
Differs: images are not rounded to 256 levels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robobench.api import ATTACKS, AttackState, IterativeAttack, KeyedRng, loss_and_input_grad, per_image


@dataclass(frozen=True, kw_only=True)
class DDNConfig:
    steps: int = 100
    init_length: float = 1.0  # length of the first perturbation
    gamma: float = 0.05  # the length changes by this fraction in a step

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.init_length > 0 or not 0 < self.gamma < 1:
            raise ValueError(
                f"steps must be >= 1, init_length > 0 and gamma lie in (0, 1), got {self.steps}, {self.init_length}, "
                f"{self.gamma}"
            )


@ATTACKS.register("ddn")
class DDN(IterativeAttack):
    """Minimum-norm attack in L2: decoupled direction and norm, 100 steps."""

    Config = DDNConfig
    norms = ("L2",)
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"quick": {"steps": 20}}
    finds_closest = iterates_leave_ball = supports_compile = True

    def start(self, images: Tensor, labels: Tensor, rng: KeyedRng) -> AttackState:
        """Start at the clean image."""
        far = torch.full((len(images),), math.inf, device=images.device, dtype=images.dtype)
        memory = {"closest": images, "distance": far, "length": torch.full_like(far, self.config.init_length)}
        return AttackState(images, labels, images.clone(), rng, memory)

    def step(self, model: nn.Module, state: AttackState) -> tuple[AttackState, Tensor]:
        """Add a normalized gradient of the cross-entropy to delta, and set delta's length to the new one."""

        def loss(logits: Tensor, _: Tensor) -> Tensor:
            return F.cross_entropy(logits, state.labels, reduction="none")

        logits, _, grad = loss_and_input_grad(self.name, model, state.adv, state.labels, loss)
        wrong, memory, images = logits.argmax(1) != state.labels, dict(state.memory), state.images
        self.keep_closest(state, wrong, memory)
        cosine = (1 + math.cos(math.pi * state.iteration / self.steps)) / 2
        step_size = 0.01 + 0.99 * cosine  # from 1 to 0.01
        direction = self.threat.direction(grad)
        unused = per_image((grad == 0).flatten(1).all(1), grad)
        random = state.rng.child("zero gradient", state.iteration).normal_like(images)
        delta = state.adv - images + step_size * torch.where(unused, self.threat.direction(random), direction)
        largest = torch.maximum(images, 1 - images).flatten(1).norm(dim=1)
        length = memory["length"] * torch.where(wrong, 1 - self.config.gamma, 1 + self.config.gamma)
        memory["length"] = torch.minimum(length, largest)
        adv = images + per_image(memory["length"], delta) * self.threat.direction(delta)
        return state.advance(adv.clamp_(0, 1), **memory), logits

    def finish(self, state: AttackState, logits: Tensor) -> Tensor:
        """Return the closest adversarial example if it lies inside the ball, else the clean image."""
        memory = dict(state.memory)
        self.keep_closest(state, logits.argmax(1) != state.labels, memory)
        inside = per_image(memory["distance"] <= self.threat.eps, state.images)
        return torch.where(inside, memory["closest"], state.images)

    def keep_closest(self, state: AttackState, wrong: Tensor, memory: dict[str, Tensor]) -> None:
        """Update the closest adversarial example of each image."""
        distance = self.threat.distance(state.adv, state.images)
        closer = wrong & (distance < memory["distance"])
        memory["distance"] = torch.where(closer, distance, memory["distance"])
        memory["closest"] = torch.where(per_image(closer, state.adv), state.adv, memory["closest"])
