"""APGD: projected gradient ascent with momentum and automatic step sizes.

Paper:   Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
         attacks", ICML 2020, arXiv:2003.01690: Algorithm 1, the DLR loss (eq. 6) and its targeted form (eq. 7).
         L1: Croce and Hein, "Mind the box: l1-APGD for sparse adversarial attacks on image classifiers", ICML 2021,
         arXiv:2103.01208: Algorithm 1, in balls of 3, 2 and 1 times the radius.
         apgd-pm: Xie et al., "Towards Million-Scale Adversarial Robustness Evaluation With Stronger Individual
         Attacks", 2024, arXiv:2411.15210: the probability margin loss.
         apgd-malt: Melamed et al., "MALT Powers Up Adversarial Attacks", NeurIPS 2024, arXiv:2407.02240: the order of
         the target classes.
Code:    github.com/fra31/auto-attack; same constants and order of operations. A test compares outcomes per image.
Differs: the loss after the first step is compared with the loss at the start, as in the paper; the code compares it
         with zero. Images that are misclassified when clean are attacked too, with another target than the true class.
         The probability margin is increased through its logarithm, which does not underflow.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robobench.api import (
    ATTACKS,
    AttackState,
    IterativeAttack,
    KeyedRng,
    OwnLossConfig,
    RequestError,
    ThreatModel,
    attack_cross_entropy,
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
class APGDCEConfig(OwnLossConfig, APGDConfig):
    def __post_init__(self) -> None:
        OwnLossConfig.__post_init__(self)
        APGDConfig.__post_init__(self)


@dataclass(frozen=True, kw_only=True)
class TargetedConfig(APGDConfig):
    targets: int = 9  # number of target classes, the most likely first; at most all wrong classes

    def __post_init__(self) -> None:
        APGDConfig.__post_init__(self)
        if self.targets < 1:
            raise ValueError(f"targets must be >= 1, got {self.targets}")


@dataclass(frozen=True, kw_only=True)
class MALTConfig(TargetedConfig):
    candidates: int = 100  # most likely wrong classes that are ordered; at most all

    def __post_init__(self) -> None:
        TargetedConfig.__post_init__(self)
        if self.candidates < self.targets:
            raise ValueError(f"candidates must be at least targets ({self.targets}), got {self.candidates}")


class APGD(IterativeAttack):
    """Algorithm 1; a subclass implements the loss."""

    Config = APGDConfig
    supports_compile = True
    norms = ("Linf", "L2", "L1")
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"quick": {"steps": 10}}
    momentum = 0.75  # alpha in the paper
    min_increases = 0.75  # fraction of steps since the last checkpoint that must increase the loss; rho in the paper

    def __init__(self, config: Any, threat: ThreatModel) -> None:
        super().__init__(config, threat)
        self.iterates_leave_ball = threat.norm == "L1"

    @property
    def steps(self) -> int:
        """Number of gradients of one restart. In L1, the start of each larger ball takes one more."""
        return int(self.config.steps) + (len(self.balls) - 1 if self.threat.norm == "L1" else 0)

    def prepare(self, model: nn.Module, images: Tensor) -> None:
        """Raise RequestError if the model has too few classes for the loss."""
        if self.min_classes <= 2:
            return
        with torch.no_grad():
            self.num_classes = model(images[:1]).shape[1]
        if self.num_classes < self.min_classes:
            raise RequestError(
                f"attack '{self.name}' needs at least {self.min_classes} classes, the model has {self.num_classes}; "
                "use apgd-ce"
            )

    def start(self, images: Tensor, labels: Tensor, rng: KeyedRng) -> AttackState:
        """Start at a random image on the surface of the ball (L1: of the largest). In Linf, one pixel moves by eps."""
        if self.threat.norm == "L1":
            largest = self.threat.scaled(self.balls[0][0])
            return AttackState(images, labels, largest.project(images + rng.normal_like(images), images), rng)
        if self.threat.norm == "Linf":
            delta = 2 * rng.uniform_like(images) - 1
            delta /= per_image(delta.flatten(1).abs().amax(1).clamp_min(1e-12), images)
        else:
            delta = self.threat.direction(rng.normal_like(images))
        adv = self.threat.project(images + self.threat.eps * delta, images)
        return AttackState(images, labels, adv, rng)

    def step(self, model: nn.Module, state: AttackState) -> tuple[AttackState, Tensor]:
        """Evaluate the current image, update the best one and the step size, and take a step."""
        state = self.choose_target(model, state)
        logits, loss, grad = loss_and_input_grad(
            self.name, model, state.adv, state.labels, lambda logits, _: self.loss(logits, state)
        )
        move = self._move_l1 if self.threat.norm == "L1" else self._move
        return move(state, loss, grad), logits

    def _move(self, state: AttackState, loss: Tensor, grad: Tensor) -> AttackState:
        """Take a step with momentum; halve the step size at a checkpoint."""
        adv = state.adv
        memory = self._remember(state, loss, grad)
        if state.iteration in self.checkpoints:
            halve = memory["increases"] <= self.min_increases * self.checkpoints[state.iteration]
            halve |= ~memory["halved"] & (memory["checkpoint_loss"] >= memory["best_loss"])
            memory["step_size"] = torch.where(halve, memory["step_size"] / 2, memory["step_size"])
            memory |= {"halved": halve, "checkpoint_loss": memory["best_loss"], "increases": torch.zeros_like(loss)}
            reset = per_image(halve, adv)  # to the best image
            adv = torch.where(reset, memory["best_adv"], adv)
            grad = torch.where(reset, memory["best_grad"], grad)
        new = adv + per_image(memory["step_size"], adv) * self.threat.direction(grad)
        new = self.threat.project(new, state.images)
        if state.iteration > 0:
            delta = self.momentum * (new - adv) + (1 - self.momentum) * (adv - memory["previous_adv"])
            new = self.threat.project(adv + delta, state.images)
        memory["previous_adv"] = adv
        return state.advance(new, **memory)

    @property
    def balls(self) -> list[tuple[float, int]]:
        """L1: the radii of the balls in units of eps, and the steps in each."""
        steps = int(self.config.steps)
        first = min(math.ceil(0.3 * steps), (steps - 1) // 2)
        return [(3.0, first), (2.0, first), (1.0, steps - 2 * first)]

    def _move_l1(self, state: AttackState, loss: Tensor, grad: Tensor) -> AttackState:
        """Move the values with the largest gradient by the same length. Their number follows the best perturbation's.

        In each ball, the number is 1 / 1.5 of the values that the start, later the best image, has changed. The last
        image of a ball is not moved; the best one is projected onto the next ball.
        """
        memory, images, adv = dict(state.memory), state.images, state.adv
        number, left = 0, state.iteration
        while left > self.balls[number][1]:
            left, number = left - self.balls[number][1] - 1, number + 1
        (factor, steps), total = self.balls[number], images[0].numel()
        if left == 0:
            changed = (adv != images).flatten(1).sum(1).to(loss)
            radius = torch.full_like(loss, factor * self.threat.eps)
            memory |= {"best_adv": adv, "best_grad": grad, "best_loss": loss}
            memory |= {"changed": changed, "count": changed / 1.5, "step_size": radius}
        else:
            better = loss > memory["best_loss"]
            where = per_image(better, adv)
            memory["best_adv"] = torch.where(where, adv, memory["best_adv"])
            memory["best_grad"] = torch.where(where, grad, memory["best_grad"])
            memory["best_loss"] = torch.where(better, loss, memory["best_loss"])
            if left % max(int(0.04 * steps), 1) == 0:
                changed = (memory["best_adv"] != images).flatten(1).sum(1).to(loss)
                sparser = changed / memory["changed"] < 0.95
                largest = factor * self.threat.eps
                step_size = torch.where(sparser, largest, memory["step_size"] / 1.5).clamp(largest / 10, largest)
                memory |= {"changed": changed, "count": changed / 1.5, "step_size": step_size}
                adv = torch.where(per_image(sparser, adv), memory["best_adv"], adv)
                grad = torch.where(per_image(sparser, adv), memory["best_grad"], grad)
        if left == steps:
            new = self.threat.scaled(self.balls[number + 1][0]).project(memory["best_adv"], images)
            return state.advance(new, **memory)
        at = (total - memory["count"]).long().clamp(0, total - 1)
        size = grad.flatten(1).abs()
        chosen = size >= size.sort(1).values.gather(1, at[:, None])
        move = grad.sign() * chosen.view_as(grad)
        move = move / per_image(move.flatten(1).abs().sum(1).clamp_min(1), move)
        new = adv + per_image(memory["step_size"], adv) * move
        return state.advance(self.threat.scaled(factor).project(new, images), **memory)

    def _remember(self, state: AttackState, loss: Tensor, grad: Tensor) -> dict[str, Tensor]:
        """Update each image's memory: its best adversarial image with loss and gradient, and the loss increases."""
        old = state.memory
        if state.iteration == 0:
            return {
                "best_adv": state.adv,
                "best_grad": grad,
                "best_loss": loss,
                "last_loss": loss,
                "checkpoint_loss": loss,  # best loss at the last checkpoint
                "increases": torch.zeros_like(loss),  # steps since then that increased the loss
                "halved": torch.ones_like(loss, dtype=torch.bool),  # step size was halved at the last checkpoint
                "step_size": torch.full_like(loss, 2 * self.threat.eps),
            }
        better = loss > old["best_loss"]
        where = per_image(better, grad)
        return {
            **old,
            "best_adv": torch.where(where, state.adv, old["best_adv"]),
            "best_grad": torch.where(where, grad, old["best_grad"]),
            "best_loss": torch.where(better, loss, old["best_loss"]),
            "last_loss": loss,
            "increases": old["increases"] + (loss > old["last_loss"]),
        }

    def finish(self, state: AttackState, logits: Tensor) -> Tensor:
        """Return the image with the largest loss."""
        better = self.loss(logits, state) > state.memory["best_loss"]
        return torch.where(per_image(better, state.adv), state.adv, state.memory["best_adv"])

    @cached_property
    def checkpoints(self) -> dict[int, int]:
        """Iterations at which the step size may be halved -> steps since the previous checkpoint."""
        period, shrink, shortest = (max(int(part * self.steps), 1) for part in (0.22, 0.03, 0.06))
        iteration, found = period, {}
        while iteration <= self.steps:
            found[iteration] = period
            period = max(period - shrink, shortest)
            iteration += period
        return found

    def choose_target(self, model: nn.Module, state: AttackState) -> AttackState:
        """Set the target class before the first step of a targeted loss."""
        return state

    @abstractmethod
    def loss(self, logits: Tensor, state: AttackState) -> Tensor:
        """Return the loss to maximize: logits (B, K) -> (B,)."""


@ATTACKS.register("apgd-ce")
class APGDCE(APGD):
    """APGD on the cross-entropy."""

    Config = APGDCEConfig
    version = 2

    def loss(self, logits: Tensor, state: AttackState) -> Tensor:
        """Return the cross-entropy in nats, or the user's loss."""
        loss: Tensor = self.config.own_loss(attack_cross_entropy)(logits, state.labels)
        return loss


@ATTACKS.register("apgd-dlr")
class APGDDLR(APGD):
    """APGD on the difference of logits ratio (DLR) loss; needs 3 classes."""

    min_classes = 3

    def loss(self, logits: Tensor, state: AttackState) -> Tensor:
        """Return the margin divided by the largest minus the third largest logit (eq. 6)."""
        top = logits.topk(3, dim=1).values
        return margin(logits, state.labels) / (top[:, 0] - top[:, 2] + 1e-12)


@ATTACKS.register("apgd-pm")
class APGDPM(APGD):
    """APGD on the probability margin loss."""

    def loss(self, logits: Tensor, state: AttackState) -> Tensor:
        """Return log(1 + p_j - p_y) in nats, with the most likely wrong class j.

        It has the order and the gradient directions of p_j - p_y. Since 1 - p_y is the sum of the wrong classes, it is
        the log of the sum of p_j and of all p_k with k not y, where no difference of large numbers occurs.
        """
        wrong = mask_true_class(logits.log_softmax(1), state.labels)
        return torch.cat((wrong, wrong.amax(1, keepdim=True)), 1).logsumexp(1)


@ATTACKS.register("apgd-t")
class APGDT(APGD):
    """APGD on the targeted DLR loss, one run for each of 9 target classes; needs 4 classes."""

    Config = TargetedConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"quick": {"steps": 10, "targets": 2}}
    min_classes = 4

    @property
    def targets(self) -> int:
        """Number of target classes."""
        return min(int(self.config.targets), (self.num_classes or 1000) - 1)

    @property
    def restarts(self) -> int:
        """`config.restarts` runs for each target class."""
        return int(self.config.restarts) * self.targets

    @property
    def cost(self) -> float:
        """As in APGD, and one forward on the clean images per run, to choose the target."""
        return self.restarts * (2.0 * self.steps + 2)

    def choose_target(self, model: nn.Module, state: AttackState) -> AttackState:
        """Set the next most likely wrong class of the clean image as target."""
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
        """Return the targeted DLR loss: target logit minus true logit, scaled by the four largest logits (eq. 7)."""
        pair = logits.gather(1, torch.stack((state.memory["target"], state.labels), 1))
        top = logits.topk(4, dim=1).values
        return (pair[:, 0] - pair[:, 1]) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)


@ATTACKS.register("apgd-malt")
class APGDMALT(APGDT):
    """APGD on the targeted DLR loss, targets ordered by their distance on a linear model (MALT); needs 4 classes."""

    Config = MALTConfig

    @property
    def cost(self) -> float:
        """As in APGD, and for the order one forward and, for each candidate, a forward and a gradient."""
        candidates = min(int(self.config.candidates), (self.num_classes or 1000) - 1)
        return self.restarts * (2.0 * self.steps + 1) + 1 + 2 * candidates

    def choose_target(self, model: nn.Module, state: AttackState) -> AttackState:
        """Set the next target class; the first restart orders them."""
        if state.iteration > 0:
            return state
        if state.restart == 0:
            self._index, self._order = state.rng.index, self._order_targets(model, state)
        rows = (state.rng.index[:, None] == self._index).int().argmax(1)  # of the images that are left
        state.memory["target"] = self._order[rows, state.restart // self.config.restarts]
        return state

    def _order_targets(self, model: nn.Module, state: AttackState) -> Tensor:
        """Return the target classes of each image, the closest first: (B, targets).

        The distance to class c is that on the linearized model: the difference of the logits divided by the dual norm
        of the gradient of that difference.
        """
        with torch.no_grad():
            logits = mask_true_class(model(state.images), state.labels)
        candidates = logits.topk(min(int(self.config.candidates), logits.shape[1] - 1)).indices
        power = {"Linf": 1.0, "L2": 2.0, "L1": math.inf}[self.threat.norm]
        scores = []
        for target in candidates.T:
            pair = torch.stack((target, state.labels), 1)

            def difference(logits: Tensor, _: Tensor, pair: Tensor = pair) -> Tensor:
                both = logits.gather(1, pair)
                return both[:, 0] - both[:, 1]

            _, gap, grad = loss_and_input_grad(self.name, model, state.images, state.labels, difference)
            scores.append(gap / grad.flatten(1).norm(p=power, dim=1).clamp_min(torch.finfo(grad.dtype).tiny))
        return candidates.gather(1, torch.stack(scores, 1).topk(self.targets).indices)
