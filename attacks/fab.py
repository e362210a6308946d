"""FAB-T: walks along the linearized boundary towards a target class, and back, for the closest example.

Paper:   Croce and Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack",
         ICML 2020, arXiv:1907.02044: Algorithm 1; the targeted form is that of arXiv:2003.01690.
Code:    constants are those of github.com/fra31/auto-attack; parity of verdicts is tested.
Differs: the projection on a hyperplane inside the box is found by Newton's method on its one multiplier, which ends
         at the exact answer, not by sorting pixels. A target is never the label.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robobench.api import (
    ATTACKS,
    AttackState,
    IterativeAttack,
    KeyedRng,
    RequestError,
    loss_and_input_grad,
    mask_true_class,
    per_image,
)


@dataclass(frozen=True, kw_only=True)
class FABConfig:
    steps: int = 100
    targets: int = 9  # classes aimed at, the likeliest first; at most one less than the model has
    alpha_max: float = 0.1  # largest weight of the step from the clean image
    overshoot: float = 1.05  # eta in the paper
    beta: float = 0.9  # factor on the perturbation after a success

    def __post_init__(self) -> None:
        if min(self.steps, self.targets) < 1:
            raise ValueError(f"steps and targets must be >= 1, got {self.steps}, {self.targets}")
        if not (0 <= self.alpha_max <= 1 and self.overshoot >= 1 and 0 < self.beta < 1):
            raise ValueError(
                f"alpha_max must lie in [0, 1], overshoot be >= 1 and beta lie in (0, 1), got {self.alpha_max}, "
                f"{self.overshoot}, {self.beta}"
            )


@ATTACKS.register("fab-t")
class FABT(IterativeAttack):
    """Fast adaptive boundary attack, one run for each of 9 targets."""

    Config = FABConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"quick": {"steps": 10, "targets": 2}}
    iterates_leave_ball = supports_compile = True

    @property
    def restarts(self) -> int:
        """One start for each target."""
        return min(int(self.config.targets), (self.num_classes or 1000) - 1)

    @property
    def cost(self) -> float:
        """A look and a gradient each step, twice the look where the one before was a success outside the ball."""
        return self.restarts * (3.0 * self.steps + 1)

    def prepare(self, model: nn.Module, images: Tensor) -> None:
        """Ask the model for its number of classes."""
        with torch.no_grad():
            self.num_classes = model(images[:1]).shape[1]
        if self.num_classes < 2:
            raise RequestError(f"attack '{self.name}' needs at least 2 classes, the model has {self.num_classes}")

    def start(self, images: Tensor, labels: Tensor, rng: KeyedRng) -> AttackState:
        """Start at the clean image."""
        nowhere = torch.full((len(images),), math.inf, device=images.device, dtype=images.dtype)
        return AttackState(images, labels, images.clone(), rng, {"closest": images, "distance": nowhere})

    def step(self, model: nn.Module, state: AttackState) -> tuple[AttackState, Tensor]:
        """Step back from where the model errs, linearize there, and walk to the boundary."""
        cfg, images, memory = self.config, state.images, dict(state.memory)
        with torch.no_grad():
            logits = model(state.adv)
        if state.iteration == 0:
            memory["target"] = mask_true_class(logits, state.labels).topk(state.restart + 1).indices[:, state.restart]
        wrong = logits.argmax(1) != state.labels
        self._keep_closest(state, wrong, memory)
        adv = torch.where(per_image(wrong, images), torch.lerp(images, state.adv, cfg.beta), state.adv)
        gap, normal = self._linearize(model, adv, state.labels, memory["target"])
        # On the plane gap + normal (z - adv) = 0 the target draws level with the label.
        here = to_plane(adv, normal, gap, self.threat.norm)
        there = to_plane(images, normal, gap + (normal * (images - adv)).flatten(1).sum(1), self.threat.norm)
        from_here, from_there = (self._length(delta).clamp_min(1e-8) for delta in (here, there))
        alpha = per_image((from_here / (from_here + from_there)).clamp_max(cfg.alpha_max), images)
        moved = torch.lerp(adv + cfg.overshoot * here, images + cfg.overshoot * there, alpha).clamp_(0, 1)
        return state.advance(moved, **memory), logits

    def finish(self, state: AttackState, logits: Tensor) -> Tensor:
        """Return the closest example if it is inside the ball, else the clean image."""
        memory = dict(state.memory)
        self._keep_closest(state, logits.argmax(1) != state.labels, memory)
        return torch.where(
            per_image(memory["distance"] <= self.threat.eps, state.images), memory["closest"], state.images
        )

    def _keep_closest(self, state: AttackState, wrong: Tensor, memory: dict[str, Tensor]) -> None:
        distance = self.threat.distance(state.adv, state.images)
        closer = wrong & (distance < memory["distance"])
        if bool(closer.any()):
            memory["distance"] = torch.where(closer, distance, memory["distance"])
            memory["closest"] = torch.where(per_image(closer, state.adv), state.adv, memory["closest"])

    def _linearize(self, model: nn.Module, adv: Tensor, labels: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the target's logit minus the label's, (B,), and its gradient (B, C, H, W)."""

        def gap(logits: Tensor, _: Tensor) -> Tensor:
            ends = logits.gather(1, torch.stack((target, labels), 1))
            return ends[:, 0] - ends[:, 1]

        return loss_and_input_grad(self.name, model, adv, labels, gap)[1:]

    def _length(self, delta: Tensor) -> Tensor:
        return self.threat.distance(delta, torch.zeros_like(delta[:1]))


def to_plane(points: Tensor, normal: Tensor, offset: Tensor, norm: str) -> Tensor:
    """Find the shortest move to the plane offset + normal . delta = 0 that stays in [0, 1], in a norm.

    Pixel i moves by min(lambda v_i, room_i) against the plane's side, v_i being 1 (Linf) or |normal_i| (L2). What is
    gained, g(lambda), is concave, increasing and piecewise linear, so Newton's method from 0 climbs to the
    exact lambda in as many rounds as there are breaks on its way. A plane out of reach gives the box's nearest corner.

    Args:
        points: (B, C, H, W) in [0, 1].
        normal: (B, C, H, W).
        offset: (B,).

    Returns:
        delta, (B, C, H, W).

    Source: Croce and Hein, arXiv:1907.02044, eq. 3 (the problem; they solve it by sorting).
    """
    shape, points, normal = points.shape, points.flatten(1), normal.flatten(1)
    # Work in the units of the largest slope: those of a confident network underflow when squared.
    scale = normal.abs().amax(1).clamp_min(torch.finfo(normal.dtype).tiny)
    side = -offset.sign()[:, None] * normal.sign()
    room = torch.where(side > 0, 1 - points, points) * side.abs()
    weight = normal.abs() / scale[:, None]
    speed = torch.ones_like(weight) if norm == "Linf" else weight
    needed = offset.abs() / scale
    reach = room / speed.clamp_min(torch.finfo(speed.dtype).tiny)  # lambda at which a pixel meets the box
    gain = weight * speed
    multiplier = torch.zeros_like(needed)
    for _ in range(100):
        missing = needed - (weight * torch.minimum(multiplier[:, None] * speed, room)).sum(1)
        gained = (gain * (reach > multiplier[:, None])).sum(1)  # 0: every pixel is at the box
        going = (missing > 1e-6 * needed) & (gained > 0)
        if not bool(going.any()):
            break
        multiplier += torch.where(going, missing / gained.clamp_min(1e-30), 0)
    return (side * torch.minimum(multiplier[:, None] * speed, room)).view(shape)
