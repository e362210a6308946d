"""APGD: projected gradient ascent with momentum that halves its own steps where progress stops.

Paper:   Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
         parameter-free attacks", ICML 2020, arXiv:2003.01690: Algorithm 1, the DLR loss (eq. 6) and its
         targeted form (eq. 7).
Code:    constants and order are those of github.com/fra31/auto-attack; parity of verdicts is tested.
Differs: an increase of the loss at the first step is counted against the start, as in the paper; the released code
         compares it with zero. A target is never the label, also where the label is not the first class.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robobench.api import (
    ATTACKS,
    AttackState,
    IterativeAttack,
    KeyedRng,
    RequestError,
    loss_and_input_grad,
    margin,
    mask_true_class,
    per_image,
)


@dataclass(frozen=True, kw_only=True)
class APGDConfig:
    steps: int = 100
    restarts: int = 1

    def __post_init__(self) -> None:
        if min(self.steps, self.restarts) < 1:
            raise ValueError(f"steps and restarts must be >= 1, got {self.steps}, {self.restarts}")


@dataclass(frozen=True, kw_only=True)
class TargetedConfig(APGDConfig):
    targets: int = 9  # classes aimed at, the likeliest first; at most one less than the model has

    def __post_init__(self) -> None:
        APGDConfig.__post_init__(self)
        if self.targets < 1:
            raise ValueError(f"targets must be >= 1, got {self.targets}")


class APGD(IterativeAttack):
    """Algorithm 1 on any loss; a subclass gives the loss."""

    Config = APGDConfig
    supports_compile = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"quick": {"steps": 10}}
    momentum = 0.75  # alpha in the paper
    progress = 0.75  # of the steps since the last checkpoint must raise the loss; rho in the paper
    classes = 2  # the fewest for which the loss is defined

    def prepare(self, model: nn.Module, images: Tensor) -> None:
        """Refuse a model with too few classes for the loss."""
        if self.classes <= 2:
            return
        with torch.no_grad():
            self.num_classes = model(images[:1]).shape[1]
        if self.num_classes < self.classes:
            raise RequestError(
                f"attack '{self.name}' needs at least {self.classes} classes, the model has {self.num_classes}; "
                "use apgd-ce"
            )

    def start(self, images: Tensor, labels: Tensor, rng: KeyedRng) -> AttackState:
        """Start on the ball's surface: one pixel at least at the full radius (Linf), the whole length (L2)."""
        if self.threat.norm == "Linf":
            delta = 2 * rng.uniform_like(images) - 1
            delta /= per_image(delta.flatten(1).abs().amax(1).clamp_min(1e-12), images)
        else:
            delta = self.threat.direction(rng.normal_like(images))
        adv = self.threat.project(images + self.threat.eps * delta, images)
        return AttackState(images, labels, adv, rng)

    def step(self, model: nn.Module, state: AttackState) -> tuple[AttackState, Tensor]:
        """Look at the current point, keep the best, halve steps at a checkpoint, and walk on."""
        state = self.aimed(model, state)
        adv = state.adv
        logits, loss, grad = loss_and_input_grad(
            self.name, model, adv, state.labels, lambda logits, _: self.loss(logits, state)
        )
        memory = self._remember(state, loss, grad)
        if state.iteration in self.checkpoints:
            stuck = memory["rises"] <= self.progress * self.checkpoints[state.iteration]
            stuck |= ~memory["halved"] & (memory["checked_loss"] >= memory["best_loss"])
            memory["length"] = torch.where(stuck, memory["length"] / 2, memory["length"])
            memory |= {"halved": stuck, "checked_loss": memory["best_loss"], "rises": torch.zeros_like(loss)}
            back = per_image(stuck, adv)
            adv = torch.where(back, memory["best_adv"], adv)
            grad = torch.where(back, memory["best_grad"], grad)
        ahead = adv + per_image(memory["length"], adv) * self.threat.direction(grad)
        ahead = self.threat.project(ahead, state.images)
        if state.iteration > 0:
            moved = self.momentum * (ahead - adv) + (1 - self.momentum) * (adv - memory["previous"])
            ahead = self.threat.project(adv + moved, state.images)
        memory["previous"] = adv
        return state.advance(ahead, **memory), logits

    def _remember(self, state: AttackState, loss: Tensor, grad: Tensor) -> dict[str, Tensor]:
        """Update what is known of each image: the best point, its loss and gradient, the number of increases."""
        old = state.memory
        if state.iteration == 0:
            return {
                "best_adv": state.adv,
                "best_grad": grad,
                "best_loss": loss,
                "last_loss": loss,
                "checked_loss": loss,  # best loss at the last checkpoint
                "rises": torch.zeros_like(loss),
                "halved": torch.ones_like(loss, dtype=torch.bool),  # at the last checkpoint
                "length": torch.full_like(loss, 2 * self.threat.eps),
            }
        better = loss > old["best_loss"]
        where = per_image(better, grad)
        return {
            **old,
            "best_adv": torch.where(where, state.adv, old["best_adv"]),
            "best_grad": torch.where(where, grad, old["best_grad"]),
            "best_loss": torch.where(better, loss, old["best_loss"]),
            "last_loss": loss,
            "rises": old["rises"] + (loss > old["last_loss"]),
        }

    def finish(self, state: AttackState, logits: Tensor) -> Tensor:
        """Return the point of the largest loss."""
        better = self.loss(logits, state) > state.memory["best_loss"]
        return torch.where(per_image(better, state.adv), state.adv, state.memory["best_adv"])

    @cached_property
    def checkpoints(self) -> dict[int, int]:
        """Iterations at which steps may be halved, with the number of steps since the one before."""
        window, shrink, least = (max(int(part * self.steps), 1) for part in (0.22, 0.03, 0.06))
        at, found = window, {}
        while at <= self.steps:
            found[at] = window
            window = max(window - shrink, least)
            at += window
        return found

    def aimed(self, model: nn.Module, state: AttackState) -> AttackState:
        """Choose targets before the first step, where the loss has them."""
        return state

    @abstractmethod
    def loss(self, logits: Tensor, state: AttackState) -> Tensor:
        """Return the loss to be raised: (B, K) -> (B,)."""


@ATTACKS.register("apgd-ce")
class APGDCE(APGD):
    """AutoPGD on the cross-entropy."""

    def loss(self, logits: Tensor, state: AttackState) -> Tensor:
        """Cross-entropy, in nats."""
        return F.cross_entropy(logits, state.labels, reduction="none")


@ATTACKS.register("apgd-dlr")
class APGDDLR(APGD):
    """AutoPGD on the difference of logits ratio (3 classes or more)."""

    classes = 3

    def loss(self, logits: Tensor, state: AttackState) -> Tensor:
        """Margin over the spread of the three largest logits (eq. 6)."""
        top = logits.topk(3, dim=1).values
        return margin(logits, state.labels) / (top[:, 0] - top[:, 2] + 1e-12)


@ATTACKS.register("apgd-t")
class APGDT(APGD):
    """AutoPGD on the targeted DLR loss, one run for each of 9 targets (4 classes or more)."""

    Config = TargetedConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"quick": {"steps": 10, "targets": 2}}
    classes = 4

    @property
    def targets(self) -> int:
        """Number of classes aimed at."""
        return min(int(self.config.targets), (self.num_classes or 1000) - 1)

    @property
    def restarts(self) -> int:
        """One start for each target."""
        return int(self.config.restarts) * self.targets

    @property
    def cost(self) -> float:
        """Each start looks at the clean image for its target."""
        return self.restarts * (2.0 * self.steps + 2)

    def aimed(self, model: nn.Module, state: AttackState) -> AttackState:
        """Aim at the class that comes after those of earlier starts, by the logits of the clean image."""
        if state.iteration > 0:
            return state
        rank = state.restart // self.config.restarts
        with torch.no_grad():
            target = mask_true_class(model(state.images), state.labels).topk(rank + 1).indices[:, rank]
        state.memory["target"] = target
        return state

    def _remember(self, state: AttackState, loss: Tensor, grad: Tensor) -> dict[str, Tensor]:
        return {"target": state.memory["target"], **super()._remember(state, loss, grad)}

    def loss(self, logits: Tensor, state: AttackState) -> Tensor:
        """Lead of the target over the label, over the spread of the four largest logits (eq. 7)."""
        ends = logits.gather(1, torch.stack((state.memory["target"], state.labels), 1))
        top = logits.topk(4, dim=1).values
        return (ends[:, 0] - ends[:, 1]) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)
