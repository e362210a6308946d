"""Attacks and models that can be followed by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from robobench.attack_engine.base import IterativeAttack, NoConfig
from robobench.attack_engine.state import AttackState
from robobench.core.rng import KeyedRng
from tests.helpers.toys import LinearTwoClass


class Climb(IterativeAttack):
    """Adds 0.1 at every step. The first restart starts at the image, later ones 0.15 above it."""

    Config, name = NoConfig, "climb"
    steps, restarts = 3, 1
    starts: tuple[int, ...] = ()  # number of images at each start

    def start(self, images: Tensor, labels: Tensor, rng: KeyedRng) -> AttackState:
        self.starts = (*self.starts, len(images))
        offset = 0.0 if len(self.starts) == 1 else 0.15
        return AttackState(images, labels, images + offset, rng, {"age": torch.zeros(len(images))})

    def step(self, model: nn.Module, state: AttackState) -> tuple[AttackState, Tensor]:
        with torch.no_grad():
            logits = model(state.adv)
        return state.advance(state.adv + 0.1, age=state.memory["age"] + 1), logits


class Threshold(nn.Module):
    """Predicts class 1 if the pixel is at least 0.5, and counts the images it evaluates."""

    evaluated = 0

    def forward(self, images: Tensor) -> Tensor:
        self.evaluated += len(images)
        gap = images.flatten(1).sum(1) - 0.5
        return torch.stack((-gap, gap), dim=1)


class LimitedMemory(nn.Module):
    """A model that raises an out-of-memory error for more than `most` images."""

    def __init__(self, net: nn.Module, most: int, err: Exception | str | None = None) -> None:
        super().__init__()
        self.net, self.most, self.err = net, most, err or torch.OutOfMemoryError("out of memory")

    def forward(self, images: Tensor) -> Any:
        if len(images) > self.most:
            if isinstance(self.err, str):  # torch's CPU allocator fails
                torch.empty(2**60, dtype=torch.uint8)
            else:
                raise self.err
        return self.net(images)


def pixels(*values: float) -> Tensor:
    """Return images of one pixel each: (B, 1, 1, 1)."""
    return torch.tensor(values).view(-1, 1, 1, 1)


def gap_drop(attack: Any) -> tuple[Tensor, Tensor]:
    """Attack a linear model; return the drop of its logit gap, and the largest possible drop: (3,), (3,)."""
    model, threat = LinearTwoClass((3, 6, 6)).requires_grad_(False), attack.threat
    images, labels = torch.full((3, 3, 6, 6), 0.5), torch.zeros(3, dtype=torch.long)
    drop = -model.gap(attack.attack_full_budget(model, images, labels, KeyedRng.of(torch.arange(3), 0)))
    return drop, (threat.eps * model.w.norm(1 if threat.norm == "Linf" else 2)).expand(3)
