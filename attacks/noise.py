"""Random noise inside the ball: a baseline that every gradient attack must beat.

Paper:   Carlini et al., "On Evaluating Adversarial Robustness", 2019, arXiv:1902.06705, which recommends random search
         as a check of gradient attacks.
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
    """Random search with 100 draws, uniform and Gaussian in turn; no gradients."""

    Config = NoiseConfig
    gradient_free = True
    norms = ("Linf", "L2", "L1")
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"quick": {"samples": 20}}

    @property
    def steps(self) -> int:
        """One less than the samples: the core evaluates the last sample after the last step."""
        return int(self.config.samples) - 1

    @property
    def cost(self) -> float:
        """One forward per sample."""
        return float(self.config.samples)

    def start(self, images: Tensor, labels: Tensor, rng: KeyedRng) -> AttackState:
        """Start at the first sample."""
        adv = self._draw(images, rng, 0)
        lowest = torch.full((len(images),), -math.inf, device=images.device, dtype=images.dtype)
        return AttackState(images, labels, adv, rng, {"best_adv": adv, "best_margin": lowest})

    def step(self, model: nn.Module, state: AttackState) -> tuple[AttackState, Tensor]:
        """Evaluate the current sample, update the best one, and draw the next."""
        with torch.no_grad():
            logits = model(state.adv)
        best_adv, best_margin = self._best(state, logits)
        adv = self._draw(state.images, state.rng, state.iteration + 1)
        return state.advance(adv, best_adv=best_adv, best_margin=best_margin), logits

    def finish(self, state: AttackState, logits: Tensor) -> Tensor:
        """Return the sample with the largest margin."""
        return self._best(state, logits)[0]

    def _best(self, state: AttackState, logits: Tensor) -> tuple[Tensor, Tensor]:
        margins = margin(logits, state.labels).to(state.images.dtype)
        better = margins > state.memory["best_margin"]
        best_adv = torch.where(per_image(better, state.adv), state.adv, state.memory["best_adv"])
        return best_adv, torch.where(better, margins, state.memory["best_margin"])

    def _draw(self, images: Tensor, rng: KeyedRng, number: int) -> Tensor:
        """Draw uniform noise for even numbers, else Gaussian noise with expected norm eps (Linf: std eps)."""
        rng = rng.child("draw", number)
        if number % 2 == 0:
            return self.threat.random_start(images, rng)
        count = images[0].numel()
        lengths = {"Linf": 1.0, "L2": math.sqrt(count), "L1": count * math.sqrt(2 / math.pi)}
        std = self.threat.eps / lengths[self.threat.norm]
        return self.threat.project(images + std * rng.normal_like(images), images)
