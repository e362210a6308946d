"""Runs an iterative attack: the core owns stopping, restarts and compaction, the attack owns the step."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from robobench.randomness import Noise

if TYPE_CHECKING:
    from robobench.api import IterativeAttack


@dataclass(frozen=True)
class State:
    """Where an iterative attack stands, per image: every tensor has B rows and is compacted together.

    `memory` holds what an attack remembers between steps (momentum, best loss), `iteration` counts
    the steps taken.
    """

    images: Tensor
    labels: Tensor
    adv: Tensor
    noise: Noise
    memory: dict[str, Tensor] = field(default_factory=dict)
    iteration: int = 0

    def __getitem__(self, keep: Tensor) -> State:
        """Keep only the images where `keep` (B,) is true."""
        return replace(
            self,
            images=self.images[keep],
            labels=self.labels[keep],
            adv=self.adv[keep],
            noise=self.noise[keep],
            memory={name: value[keep] for name, value in self.memory.items()},
        )

    def moved(self, adv: Tensor, **memory: Tensor) -> State:
        """Return the state after a step: new images, updated memory, one more iteration."""
        return replace(self, adv=adv, memory={**self.memory, **memory}, iteration=self.iteration + 1)


@dataclass(frozen=True)
class Found:
    """What a search found: images (B, C, H, W), and which the model got wrong (B,) bool."""

    adv: Tensor
    fooled: Tensor


def search(
    attack: IterativeAttack,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    noise: Noise,
    stop: str = "first",
) -> Found:
    """Run an iterative attack on a batch.

    Args:
        stop: "first": an image leaves at its first success and the rest is compacted (for verdicts);
            "never": every image spends the full budget and its last iterate is returned (for transfer
            sets, and to compare images with other libraries). With restarts, "never" keeps the last
            iterate of the first restart that succeeds.
    """
    adv = images.clone()
    fooled = torch.zeros(len(labels), dtype=torch.bool, device=images.device)
    left = torch.arange(len(labels), device=images.device)  # images still searched, by row
    for restart in range(attack.restarts):
        state = attack.start(images[left], labels[left], noise[left].child("restart", restart))
        rows = left
        for _ in range(attack.steps):
            visited = state.adv
            state, logits = attack.step(model, state)
            if stop == "first":
                wrong = logits.argmax(1) != state.labels
                if bool(wrong.any()):
                    adv[rows[wrong]], fooled[rows[wrong]] = visited[wrong], True
                    state, rows = state[~wrong], rows[~wrong]
                    if len(rows) == 0:
                        break
        if len(rows):
            with torch.no_grad():
                fooled[rows] = model(state.adv).argmax(1) != state.labels
            adv[rows] = state.adv
        left = left[~fooled[left]]
        if len(left) == 0:
            break
    return Found(adv, fooled)
