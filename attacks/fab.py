"""FAB-T: minimum-norm attack that projects onto the linearized decision boundary of a target class.

Paper:   Croce and Hein, "Minimally distorted adversarial examples with a fast adaptive boundary attack", ICML 2020,
         arXiv:1907.02044, Algorithm 1; the targeted form is from arXiv:2003.01690.
Code:    github.com/fra31/auto-attack; same constants. A test compares outcomes per image.
Differs: the box-constrained projection onto a hyperplane uses Newton's method on its multiplier, where the code sorts
         pixels; both are exact. The target is never the true class.
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
    targets: int = 9  # number of target classes, the most likely first; at most all wrong classes
    alpha_max: float = 0.1  # largest weight of the clean image's projection
    overshoot: float = 1.05  # of the boundary; eta in the paper
    beta: float = 0.9  # scales the perturbation after a success

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
    """Fast adaptive boundary attack, one run for each of 9 target classes."""

    Config = FABConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"quick": {"steps": 10, "targets": 2}}
    iterates_leave_ball = supports_compile = finds_closest = True
    norms = ("Linf", "L2", "L1")

    @property
    def restarts(self) -> int:
        """One run for each target class."""
        return min(int(self.config.targets), (self.num_classes or 1000) - 1)

    @property
    def cost(self) -> float:
        """Two forwards and one input gradient per step, and one forward after each run.

        The first forward tells whether to step back, and the gradient is taken after that.
        """
        return self.restarts * (3.0 * self.steps + 1)

    def prepare(self, model: nn.Module, images: Tensor) -> None:
        """Set the number of classes; raise RequestError if there is only one."""
        with torch.no_grad():
            self.num_classes = model(images[:1]).shape[1]
        if self.num_classes < 2:
            raise RequestError(f"attack '{self.name}' needs at least 2 classes, the model has {self.num_classes}")

    def start(self, images: Tensor, labels: Tensor, rng: KeyedRng) -> AttackState:
        """Start at the clean image."""
        distance = torch.full((len(images),), math.inf, device=images.device, dtype=images.dtype)
        return AttackState(images, labels, images.clone(), rng, {"closest": images, "distance": distance})

    def step(self, model: nn.Module, state: AttackState) -> tuple[AttackState, Tensor]:
        """Move misclassified images towards the clean ones, linearize the boundary there, and project onto it."""
        cfg, images, memory = self.config, state.images, dict(state.memory)
        with torch.no_grad():
            logits = model(state.adv)
        if state.iteration == 0:
            memory["target"] = mask_true_class(logits, state.labels).topk(state.restart + 1).indices[:, state.restart]
        wrong = logits.argmax(1) != state.labels
        self._keep_closest(state, wrong, memory)
        adv = torch.where(per_image(wrong, images), torch.lerp(images, state.adv, cfg.beta), state.adv)
        gap, normal = self._linearize(model, adv, state.labels, memory["target"])
        # On the plane gap + normal (z - adv) = 0 the target's logit equals that of the true class.
        delta_adv = project_to_plane(adv, normal, gap, self.threat.norm)
        offset = gap + (normal * (images - adv)).flatten(1).sum(1)
        delta_clean = project_to_plane(images, normal, offset, self.threat.norm)
        adv_distance, clean_distance = (self._length(delta).clamp_min(1e-8) for delta in (delta_adv, delta_clean))
        alpha = per_image((adv_distance / (adv_distance + clean_distance)).clamp_max(cfg.alpha_max), images)
        new = torch.lerp(adv + cfg.overshoot * delta_adv, images + cfg.overshoot * delta_clean, alpha).clamp_(0, 1)
        return state.advance(new, **memory), logits

    def finish(self, state: AttackState, logits: Tensor) -> Tensor:
        """Return the closest adversarial example if it lies inside the ball, else the clean image."""
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
        """Return the target's logit minus the true one, (B,), and its gradient (B, C, H, W)."""

        def gap(logits: Tensor, _: Tensor) -> Tensor:
            pair = logits.gather(1, torch.stack((target, labels), 1))
            return pair[:, 0] - pair[:, 1]

        return loss_and_input_grad(self.name, model, adv, labels, gap)[1:]

    def _length(self, delta: Tensor) -> Tensor:
        return self.threat.distance(delta, torch.zeros_like(delta[:1]))


def project_to_plane(points: Tensor, normal: Tensor, offset: Tensor, norm: str) -> Tensor:
    """Return the smallest delta with offset + normal . delta = 0 and points + delta in [0, 1].

    Pixel i moves by min(lambda v_i, room_i), where v_i is 1 (Linf) or |normal_i| (L2). The resulting change of
    normal . delta is concave, increasing and piecewise linear in lambda, so Newton's method from 0 reaches the exact
    lambda in at most one iteration per breakpoint. In L1, pixels move to 0 or 1 one after the other, the largest
    |normal_i| first. If the plane does not intersect the box, the nearest corner is returned.

    Args:
        points: (B, C, H, W) in [0, 1].
        normal: (B, C, H, W).
        offset: (B,).

    Returns:
        delta, (B, C, H, W).

    Source: the problem is eq. 3 of Croce and Hein, arXiv:1907.02044.
    """
    shape, points, normal = points.shape, points.flatten(1), normal.flatten(1)
    # Scale by the largest gradient entry: gradients of confident models underflow when squared.
    scale = normal.abs().amax(1).clamp_min(torch.finfo(normal.dtype).tiny)
    side = -offset.sign()[:, None] * normal.sign()
    room = torch.where(side > 0, 1 - points, points) * side.abs()
    weight = normal.abs() / scale[:, None]
    needed = offset.abs() / scale
    if norm == "L1":
        ordered, order = weight.sort(1, descending=True)
        gains = ordered * room.gather(1, order)
        missing = (needed[:, None] - (gains.cumsum(1) - gains)).clamp_min(0)  # before each pixel moves
        moved = torch.minimum(missing / ordered.clamp_min(1e-12), room.gather(1, order)) * (ordered > 0)
        return (side * torch.zeros_like(moved).scatter(1, order, moved)).view(shape)
    speed = torch.ones_like(weight) if norm == "Linf" else weight
    reach = room / speed.clamp_min(torch.finfo(speed.dtype).tiny)  # lambda at which a pixel reaches 0 or 1
    gain = weight * speed
    multiplier = torch.zeros_like(needed)  # lambda
    for _ in range(100):
        missing = needed - (weight * torch.minimum(multiplier[:, None] * speed, room)).sum(1)
        gained = (gain * (reach > multiplier[:, None])).sum(1)  # 0 if every pixel is 0 or 1
        unsolved = (missing > 1e-6 * needed) & (gained > 0)
        if not bool(unsolved.any()):
            break
        multiplier += torch.where(unsolved, missing / gained.clamp_min(1e-30), 0)
    return (side * torch.minimum(multiplier[:, None] * speed, room)).view(shape)
