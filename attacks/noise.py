"""Random noise inside the ball: what needs no attack at all, and what no attack may do worse than.

Source:  Carlini et al., "On Evaluating Adversarial Robustness", 2019, arXiv:1902.06705, which asks for
         random search as a check of gradient attacks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robobench.api import ATTACKS, AttackState, IterativeAttack, KeyedRng, margin, per_image


@dataclass(frozen=True, kw_only=True)
class NoiseConfig:
    samples: int = 100  # random images tried per image

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples must be >= 1, got {self.samples}")


@ATTACKS.register("noise")
class RandomNoise(IterativeAttack):
    """Uniform and Gaussian noise in turn, 100 draws; no gradient."""

    Config = NoiseConfig
    gradient_free = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"quick": {"samples": 20}}

    @property
    def steps(self) -> int:
        """The last draw is looked at after the last step."""
        return int(self.config.samples) - 1

    @property
    def cost(self) -> float:
        """One forward a draw."""
        return float(self.config.samples)

    def start(self, images: Tensor, labels: Tensor, rng: KeyedRng) -> AttackState:
        """Draw the first."""
        adv = self._draw(images, rng, 0)
        worst = torch.full((len(images),), -math.inf, device=images.device, dtype=images.dtype)
        return AttackState(images, labels, adv, rng, {"best": adv, "margin": worst})

    def step(self, model: nn.Module, state: AttackState) -> tuple[AttackState, Tensor]:
        """Look, remember the draw of the largest margin, and draw anew."""
        with torch.no_grad():
            logits = model(state.adv)
        best, reached = self._best(state, logits)
        return state.advance(
            self._draw(state.images, state.rng, state.iteration + 1), best=best, margin=reached
        ), logits

    def finish(self, state: AttackState, logits: Tensor) -> Tensor:
        """Return the draw of the largest margin."""
        return self._best(state, logits)[0]

    def _best(self, state: AttackState, logits: Tensor) -> tuple[Tensor, Tensor]:
        reached = margin(logits, state.labels).to(state.images.dtype)
        better = reached > state.memory["margin"]
        best = torch.where(per_image(better, state.adv), state.adv, state.memory["best"])
        return best, torch.where(better, reached, state.memory["margin"])

    def _draw(self, images: Tensor, rng: KeyedRng, number: int) -> Tensor:
        """Draw uniform noise on even numbers, on odd ones normal noise whose typical length is the radius."""
        rng = rng.child("draw", number)
        if number % 2 == 0:
            return self.threat.random_start(images, rng)
        std = self.threat.eps if self.threat.norm == "Linf" else self.threat.eps / math.sqrt(images[0].numel())
        return self.threat.project(images + std * rng.normal_like(images), images)
