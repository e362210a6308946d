"""PGD: projected gradient ascent on the cross-entropy from a random start. CW: the same on the margin loss.

Paper:   Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018, arXiv:1706.06083;
         the margin loss is f6 of Carlini and Wagner, "Towards Evaluating the Robustness of Neural Networks",
         IEEE S&P 2017, arXiv:1608.04644.
Code:    torchattacks, PGD (Linf) and PGDL2; same steps, but step sizes are relative to eps.
Differs: CW has a given radius, so there is no search over the constant c, and the margin is not clipped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from robobench.api import (
    ATTACKS,
    AttackState,
    IterativeAttack,
    KeyedRng,
    OwnLossConfig,
    attack_cross_entropy,
    loss_and_input_grad,
    margin,
)


@dataclass(frozen=True, kw_only=True)
class PGDConfig(OwnLossConfig):
    steps: int = 20
    relative_step: float = 0.25  # step size / eps; 2/255 at eps 8/255
    restarts: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1 or self.restarts < 1 or not self.relative_step > 0:
            raise ValueError(
                f"steps and restarts must be >= 1 and relative_step > 0, got {self.steps}, "
                f"{self.restarts}, {self.relative_step}"
            )


@ATTACKS.register("pgd")
class PGD(IterativeAttack):
    """Untargeted PGD on the cross-entropy."""

    Config = PGDConfig
    version = 2  # the cross-entropy of confident images does not underflow
    supports_bf16_search = supports_compile = True
    norms = ("Linf", "L2", "L1")
    presets: ClassVar = {"quick:large": {"steps": 10}}

    def start(self, images: Tensor, labels: Tensor, rng: KeyedRng) -> AttackState:
        """Start at a random image in the ball."""
        return AttackState(images, labels, self.threat.random_start(images, rng), rng)

    def step(self, model: nn.Module, state: AttackState) -> tuple[AttackState, Tensor]:
        """Take a step that increases the loss."""
        loss = self.config.own_loss(self.loss)
        logits, _, grad = loss_and_input_grad(
            self.name, model, state.adv, state.labels, lambda logits, _: loss(logits, state.labels)
        )
        step_size = self.config.relative_step * self.threat.eps
        return state.advance(self.threat.step(state.adv, grad, step_size, state.images)), logits

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss to maximize: logits (B, K), labels (B,) -> (B,)."""
        return attack_cross_entropy(logits, labels)


@dataclass(frozen=True, kw_only=True)
class CWConfig(PGDConfig):
    steps: int = 40


@ATTACKS.register("cw")
class CW(PGD):
    """PGD on the margin loss of Carlini and Wagner."""

    Config = CWConfig
    version = 1
    presets: ClassVar = {}

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the largest wrong logit minus the true one."""
        return margin(logits, labels)
