"""Inner maximization: the attack inside adversarial training, and its settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robobench.attack_engine.gradient import input_gradient
from robobench.core.losses import kl
from robobench.core.module_state import attack_mode, no_parameter_gradients
from robobench.core.threat import ThreatModel
from robobench.training.base import Batch
from robobench.training.config import TrainConfig


class RecordedAttacks:
    """The results of `recorded_attack` in a pass of an objective, for a second pass on the same batch."""

    def __init__(self) -> None:
        self._results: list[Tensor] = []
        self._replaying = False

    @contextmanager
    def record(self) -> Iterator[None]:
        """Keep the result of every attack in the block."""
        yield from self._use(replaying=False)

    @contextmanager
    def replay(self) -> Iterator[None]:
        """Return the kept results, in the same order, instead of attacking."""
        yield from self._use(replaying=True)

    def _use(self, *, replaying: bool) -> Iterator[None]:
        self._replaying, token = replaying, _recorded.set(self)
        try:
            yield
        finally:
            _recorded.reset(token)

    def run(self, attack: Callable[[], Tensor]) -> Tensor:
        """Return the next kept result, or run an attack and keep its result."""
        if self._replaying and self._results:
            return self._results.pop(0)
        adv = attack()
        if not self._replaying:
            self._results.append(adv)
        return adv


_recorded: ContextVar[RecordedAttacks | None] = ContextVar("recorded", default=None)


def recorded_attack(attack: Callable[[], Tensor]) -> Tensor:
    """Return the result of an attack on the batch. The second pass of weight perturbation gets that of the first."""
    recorded = _recorded.get()
    return attack() if recorded is None else recorded.run(attack)


def pgd_ascent(
    objective: Callable[[Tensor], Tensor],
    start: Tensor,
    images: Tensor,
    threat: ThreatModel,
    steps: int,
    step_size: float,
) -> Tensor:
    """Take projected gradient steps that increase an objective; return the last iterate, detached.

    Args:
        objective: maps adversarial images (B, C, H, W) to (B,). Parameters get no gradient here.
        start: first iterate (B, C, H, W); may lie outside the ball, since every step projects.
        images: clean images (B, C, H, W) in [0, 1].
        step_size: length of a step on the [0, 1] image scale.
    """

    def attack() -> Tensor:
        adv = start.detach()
        for _ in range(steps):
            adv = threat.step(adv, input_gradient(objective, adv), step_size, images)
        return adv

    return recorded_attack(attack)


@dataclass(frozen=True, kw_only=True)
class SingleStepConfig(TrainConfig):
    """Settings of a defense that takes one attack step on every batch during training."""

    relative_step: float = 0.25  # step size alpha in units of eps: 2/255 at 8/255
    attack_bn_mode: str = "eval"  # mode of BatchNorm during the attack: eval | train

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("relative_step", self.relative_step > 0, "> 0")
        self.one_of("attack_bn_mode", "eval", "train")

    def inner_attack_mode(self, *modules: nn.Module) -> AbstractContextManager[None]:
        """Return a context in which the models are attacked: without parameter gradients, in `attack_bn_mode`."""
        return attack_mode(*modules) if self.attack_bn_mode == "eval" else no_parameter_gradients(*modules)


@dataclass(frozen=True, kw_only=True)
class AdvTrainConfig(SingleStepConfig):
    """Settings of a defense that attacks every batch during training."""

    inner_steps: int = 10  # PGD steps K

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("inner_steps", self.inner_steps >= 1, ">= 1")

    def pgd_ascent(
        self, objective: Callable[[Tensor], Tensor], start: Tensor, images: Tensor, threat: ThreatModel
    ) -> Tensor:
        """Run `pgd_ascent` with the config's number and size of steps."""
        return pgd_ascent(objective, start, images, threat, self.inner_steps, self.relative_step * threat.eps)

    def ascend_from_noise(self, objective: Callable[[Tensor], Tensor], batch: Batch, threat: ThreatModel) -> Tensor:
        """Maximize an objective with the threat of the epoch, from x + 0.001 N(0, 1), not clamped.

        Source: TRADES' code, and most later ones.
        """
        threat, start = self.threat_at_epoch(threat, batch.epoch), batch.rng.child("start").normal_like(batch.images)
        return self.pgd_ascent(objective, batch.images + 0.001 * start, batch.images, threat)

    def kl_ascent(self, model: nn.Module, batch: Batch, threat: ThreatModel, target: Tensor | None = None) -> Tensor:
        """Maximize KL(target || model(x')) with `ascend_from_noise`, in `inner_attack_mode`.

        Args:
            target: logits (B, K); None means the model's own on the clean images.
        """
        with self.inner_attack_mode(model):
            if target is None:
                with torch.no_grad():
                    target = model(batch.images)
            return self.ascend_from_noise(lambda adv: kl(target, model(adv)), batch, threat)
