"""Threat models: all images within a radius of the original in a norm, and within the pixel range [0, 1]."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from robobench.core.formatting import format_eps
from robobench.core.numbers import DISTANCE_NORMS, check_eps
from robobench.core.registry import unknown_name
from robobench.core.rng import KeyedRng
from robobench.errors import RequestError, ThreatModelError

L1_ROUNDING = 2.0**-25  # largest rounding error of one value of an image in float32
STEP_FRACTION = 0.01  # of the values that an L1 step moves; Tramer and Boneh, arXiv:1904.13000


def check_unit_range(images: Tensor) -> None:
    """Raise RequestError unless every value is finite and in [0, 1] (float tolerance 1e-6)."""
    if images.numel() == 0:
        return
    low, high = images.min().item(), images.max().item()
    if not (low >= -1e-6 and high <= 1 + 1e-6):  # also true for NaN
        raise RequestError(
            f"images must lie in [0, 1], got [{low:.3g}, {high:.3g}]; normalize inside the model, not in the loader"
        )


def per_image(values: Tensor, images: Tensor) -> Tensor:
    """Reshape values (B,) so that they broadcast over images (B, C, H, W)."""
    return values.view(-1, *[1] * (images.dim() - 1))


@dataclass(frozen=True, slots=True)
class ThreatModel:
    """All images within `eps` of the original in `norm`, and inside [0, 1].

    L0 is the number of values that differ. It measures and checks only: `project`, `direction` and all that use them
    raise RequestError.
    """

    norm: str
    eps: float

    def __post_init__(self) -> None:
        if self.norm not in DISTANCE_NORMS:
            raise unknown_name("norm", self.norm, DISTANCE_NORMS)
        check_eps(self.eps, self.norm)

    def __str__(self) -> str:
        return f"{self.norm} {format_eps(self.eps)}"

    @property
    def members(self) -> tuple[ThreatModel, ...]:
        """The threat models that this one stands for; several in training against several norms."""
        return (self,)

    def recipe(self) -> dict[str, Any]:
        """Return norm and radius as plain values, for keys and records."""
        return asdict(self)

    def draw(self, *parts: str | int) -> None:
        """Draw the threat model of a training batch; there is only one here."""

    def scaled(self, factor: float) -> ThreatModel:
        """Return the same ball with its radius multiplied by `factor`."""
        return ThreatModel(self.norm, self.eps * factor)

    def distance(self, adv: Tensor, images: Tensor) -> Tensor:
        """Return the distance between images in this norm: (B, ...), (B, ...) -> (B,)."""
        if self.norm == "L0":
            return (adv != images).flatten(1).sum(1).to(adv.dtype)
        delta = (adv - images).flatten(1)
        if self.norm == "L1":
            return delta.abs().sum(1)
        return delta.abs().amax(1) if self.norm == "Linf" else delta.norm(dim=1)

    def project(self, adv: Tensor, images: Tensor) -> Tensor:
        """Project images onto the ball, then clip them to [0, 1]; in L1, project onto ball and box at once.

        In L1, clipping after the projection would use up less than the radius, which weakens attacks.
        """
        self._check_norm()
        if self.norm == "L1":  # a little less than eps: rounding to float32 moves every value
            return project_l1(adv, images, max(self.eps - L1_ROUNDING * images[:1].numel(), 0.999 * self.eps))
        if self.norm == "Linf":
            delta = (adv - images).clamp_(-self.eps, self.eps)
        else:
            delta = adv - images
            length = delta.flatten(1).norm(dim=1).clamp_min_(1e-12)  # eps 0 and delta 0 stay 0
            delta = delta * per_image((self.eps / length).clamp_max_(1.0), delta)
        return delta.add_(images).clamp_(0.0, 1.0)

    def direction(self, grad: Tensor) -> Tensor:
        """Return the steepest-ascent direction of length 1 in this norm. A zero gradient gives zero, NaN stays NaN.

        In L1 it moves one value only; `step` moves several.
        """
        self._check_norm()
        if self.norm == "L1":
            largest = F.one_hot(grad.flatten(1).abs().argmax(1), grad[0].numel()).view_as(grad)
            return torch.where(grad.isnan(), grad, grad.sign() * largest)
        if self.norm == "Linf":
            return torch.where(grad.isnan(), grad, grad.sign())  # torch's sign of NaN is 0
        # Scale before squaring: gradients of confident models underflow in float32.
        tiny = torch.finfo(grad.dtype).tiny  # not below: a processor may flush it to 0, and 0 / 0 is NaN
        grad = grad / per_image(grad.flatten(1).abs().amax(1).clamp_min(tiny), grad)
        return grad / per_image(grad.flatten(1).norm(dim=1).clamp_min(tiny), grad)

    def _check_norm(self) -> None:
        if self.norm == "L0":
            raise RequestError("norm L0 has no projection and no direction here; use Linf, L2 or L1")

    def step(self, adv: Tensor, grad: Tensor, length: float, images: Tensor) -> Tensor:
        """Take a step of size `length` along the ascent direction of `grad`, and project.

        In L1, values move in the order of their gradient until the step has its length, all by the same amount unless
        they reach 0 or 1. A hundredth of the values moves if none does.
        """
        if self.norm == "L1":
            return self.project(adv + _sparse_step(adv, grad, length), images)
        return self.project(adv + length * self.direction(grad), images)

    def random_start(self, images: Tensor, rng: KeyedRng) -> Tensor:
        """Draw random images in the ball: uniform for Linf; uniform direction and length for L2 and L1."""
        if self.norm == "Linf":
            return self.project(images + self.eps * (2 * rng.uniform_like(images) - 1), images)
        delta = self.random_direction(images, rng)
        length = self.eps * rng.child("length").uniform()
        return self.project(images + delta * per_image(length, delta), images)

    def random_direction(self, images: Tensor, rng: KeyedRng) -> Tensor:
        """Draw directions of length 1 for images (B, ...): corners for Linf, uniform on the sphere for L2 and L1."""
        if self.norm != "L1":
            return self.direction(rng.normal_like(images))
        lengths = -(1 - rng.uniform_like(images)).log()  # exponential: normalized, uniform on the simplex
        signs = torch.where(rng.child("signs").uniform_like(images) < 0.5, -1.0, 1.0)
        return signs * lengths / per_image(lengths.flatten(1).sum(1).clamp_min(1e-12), lengths)

    def tolerance(self, images: Tensor) -> float:
        """Return how far beyond eps an image may lie for its rounding.

        It is 1e-6 + 1e-5 eps, the rounding of a float32 norm over some 1e5 values. In L1, the rounding of each value is
        added.
        """
        return 1e-6 + 1e-5 * self.eps + (L1_ROUNDING * images[0].numel() if self.norm == "L1" else 0.0)

    def contains(self, adv: Tensor, images: Tensor) -> Tensor:
        """Return which images `check` accepts: (B, ...), (B, ...) -> (B,) bool."""
        values = adv.flatten(1)
        in_box = values.isfinite().all(1) & (values.amin(1) >= -1e-6) & (values.amax(1) <= 1 + 1e-6)
        return in_box & (self.distance(adv, images) <= self.eps + self.tolerance(images))

    def check(self, adv: Tensor, images: Tensor, who: str) -> None:
        """Raise ThreatModelError unless every image is finite, in [0, 1] and in the ball.

        Args:
            who: name of the attack for the error message.
        """
        if adv.shape != images.shape:
            raise ThreatModelError(f"{who} returned shape {tuple(adv.shape)} for images {tuple(images.shape)}")
        if adv.numel() == 0:
            return
        adv, images = adv.float(), images.float()
        if not bool(torch.isfinite(adv).all()):
            raise ThreatModelError(f"{who} returned values that are not finite")
        low, high = adv.min().item(), adv.max().item()
        if low < -1e-6 or high > 1 + 1e-6:
            raise ThreatModelError(f"{who} left [0, 1]: values in [{low:.3g}, {high:.3g}]")
        distance = self.distance(adv, images)
        outside = distance > self.eps + self.tolerance(images)
        if bool(outside.any()):
            raise ThreatModelError(
                f"{who} left the threat model on {int(outside.sum())} of {len(adv)} images: "
                f"max ||delta||_{self.norm.removeprefix('L')} = {distance.max():.4g} "
                f"> eps = {self.eps:.4g}"
            )


def _sparse_step(adv: Tensor, grad: Tensor, length: float) -> Tensor:
    """Return a step of L1 length `length`: a hundredth of the values, or more where some reach 0 or 1 sooner.

    Args:
        adv, grad: (B, ...); values with the largest gradient move first.
    """
    count = max(1, round(STEP_FRACTION * adv[0].numel()))
    room = torch.where(grad > 0, 1 - adv, adv).flatten(1).clamp(0, length / count)
    order = grad.flatten(1).abs().argsort(1, descending=True)
    room = room.gather(1, order)
    moved = torch.minimum(room, (length - (room.cumsum(1) - room)).clamp_min(0))
    return torch.zeros_like(moved).scatter(1, order, moved).view_as(grad) * grad.sign()


def project_l1(adv: Tensor, images: Tensor, eps: float) -> Tensor:
    """Return the images of the L1 ball and of [0, 1] that are closest to `adv` in L2: (B, ...) -> (B, ...).

    The solution shrinks every |delta_i| by one number, to no less than 0 and no more than the room up to 0 or 1. The
    sum of the results falls piecewise linearly in that number. Newton's method between two bounds finds where it is
    eps. Every third step, and a step that leaves the bounds, takes their middle instead.

    Args:
        images: in [0, 1].

    Source: the problem is that of Croce and Hein, "Mind the box: l1-APGD for sparse adversarial attacks on image
    classifiers", ICML 2021, arXiv:2103.01208, proposition 2.1.
    """
    if eps == 0 or adv.numel() == 0:
        return images.clamp(0, 1)
    delta = (adv - images).flatten(1)
    size, room = delta.abs(), torch.where(delta > 0, 1 - images.flatten(1), images.flatten(1))
    begin = (size - room).clamp_min_(0)  # the shrinkage from which on a value falls
    shrink = low = torch.zeros_like(size[:, 0])
    high = size.amax(1)
    unsolved = torch.minimum(size, room).sum(1) > eps
    for number in range(100):
        excess = torch.minimum((size - shrink[:, None]).clamp_min_(0), room).sum(1) - eps
        unsolved = unsolved & (excess.abs() > 1e-6 * eps)
        if not bool(unsolved.any()):
            break
        low, high = torch.where(excess > 0, shrink, low), torch.where(excess > 0, high, shrink)
        falling = ((begin <= shrink[:, None]) & (shrink[:, None] < size)).sum(1)
        newton = shrink + excess / falling.clamp_min(1)
        useful = (newton > low) & (newton < high) & (falling > 0) & (number % 3 < 2)
        newton = torch.where(useful, newton, (low + high) / 2)
        shrink = torch.where(unsolved, newton, shrink)
    new = torch.minimum((size - shrink[:, None]).clamp_min_(0), room) * delta.sign()
    return new.view_as(images).add_(images).clamp_(0, 1)
