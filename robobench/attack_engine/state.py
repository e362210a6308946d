"""State and result of an iterative attack, and the interface that the attack loop uses."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol

from torch import Tensor, nn

from robobench.core.rng import KeyedRng
from robobench.core.threat import ThreatModel


@dataclass(frozen=True)
class AttackState:
    """State of an iterative attack between two steps. Every tensor has one row per image.

    Attributes:
        images: clean images (B, C, H, W).
        labels: (B,) int64.
        adv: current adversarial images (B, C, H, W).
        rng: the generator of these images.
        memory: what the attack remembers between steps, such as momentum or the best loss; tensors (B, ...).
        iteration: number of steps taken in this restart.
        restart: number of restarts before this one.
    """

    images: Tensor
    labels: Tensor
    adv: Tensor
    rng: KeyedRng
    memory: dict[str, Tensor] = field(default_factory=dict)
    iteration: int = 0
    restart: int = 0

    def __getitem__(self, keep: Tensor) -> AttackState:
        """Return the state of some images: `keep` is (B,) bool, or their rows."""
        return replace(
            self,
            images=self.images[keep],
            labels=self.labels[keep],
            adv=self.adv[keep],
            rng=self.rng[keep],
            memory={name: value[keep] for name, value in self.memory.items()},
        )

    def advance(self, adv: Tensor, **memory: Tensor) -> AttackState:
        """Return the state after one more step, with new images and updated memory."""
        return replace(self, adv=adv, memory={**self.memory, **memory}, iteration=self.iteration + 1)


@dataclass(frozen=True)
class AttackResult:
    """Images (B, C, H, W) and where the attack succeeded: (B,) bool, True if the model misclassifies the image."""

    adv: Tensor
    success: Tensor


class SteppedAttack(Protocol):
    """The members of `IterativeAttack` that the attack loop uses."""

    threat: ThreatModel

    # Properties, so that class attributes match too.
    @property
    def name(self) -> str: ...

    @property
    def iterates_leave_ball(self) -> bool: ...

    @property
    def supports_bf16_search(self) -> bool: ...

    @property
    def supports_compile(self) -> bool: ...

    @property
    def steps(self) -> int: ...

    @property
    def restarts(self) -> int: ...

    def prepare(self, model: nn.Module, images: Tensor) -> None: ...

    def start(self, images: Tensor, labels: Tensor, rng: KeyedRng) -> AttackState: ...

    def step(self, model: nn.Module, state: AttackState) -> tuple[AttackState, Tensor]: ...

    def finish(self, state: AttackState, logits: Tensor) -> Tensor: ...
