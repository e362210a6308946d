"""MI-FGSM: iterative FGSM with momentum, designed for transfer attacks.

Paper:   Dong et al., "Boosting Adversarial Attacks with Momentum", CVPR 2018, arXiv:1710.06081: Algorithm 1
         and, for L2, eq. 9.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robobench.api import (
    ATTACKS,
    AttackState,
    IterativeAttack,
    KeyedRng,
    attack_cross_entropy,
    loss_and_input_grad,
    per_image,
)


@dataclass(frozen=True, kw_only=True)
class MIFGSMConfig:
    steps: int = 10  # T in the paper
    relative_step: float = 0.1  # step size / eps; 1 / T, so that T steps reach the surface of the ball
    decay: float = 1.0  # mu in the paper

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.relative_step > 0 or self.decay < 0:
            raise ValueError(
                f"steps must be >= 1, relative_step > 0 and decay >= 0, got {self.steps}, {self.relative_step}, "
                f"{self.decay}"
            )


@ATTACKS.register("mifgsm")
class MIFGSM(IterativeAttack):
    """Iterative FGSM with momentum, from the clean image."""

    Config = MIFGSMConfig
    version = 2
    supports_bf16_search = supports_compile = True

    def start(self, images: Tensor, labels: Tensor, rng: KeyedRng) -> AttackState:
        """Start at the clean image with zero momentum."""
        return AttackState(images, labels, images.clone(), rng, {"momentum": torch.zeros_like(images)})

    def step(self, model: nn.Module, state: AttackState) -> tuple[AttackState, Tensor]:
        """Add the gradient, scaled to L1 norm 1, to the momentum, and step along the momentum."""

        def loss(logits: Tensor, _: Tensor) -> Tensor:
            return attack_cross_entropy(logits, state.labels)

        logits, _, grad = loss_and_input_grad(self.name, model, state.adv, state.labels, loss)
        tiny = torch.finfo(grad.dtype).tiny
        grad = grad / per_image(grad.flatten(1).abs().amax(1).clamp_min(tiny), grad)  # the sum must not underflow
        grad = grad / per_image(grad.flatten(1).abs().sum(1).clamp_min(tiny), grad)
        momentum = self.config.decay * state.memory["momentum"] + grad
        step_size = self.config.relative_step * self.threat.eps
        adv = self.threat.step(state.adv, momentum, step_size, state.images)
        return state.advance(adv, momentum=momentum), logits
