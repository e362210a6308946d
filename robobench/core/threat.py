"""Threat models: all images within a radius of the original in a norm, and within the pixel range [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robobench.core.formatting import format_eps
from robobench.core.numbers import NORMS as NORMS
from robobench.core.numbers import canonical_norm as canonical_norm
from robobench.core.numbers import check_eps
from robobench.core.numbers import parse_eps as parse_eps
from robobench.core.registry import unknown_name
from robobench.core.rng import KeyedRng
from robobench.errors import RequestError, ThreatModelError


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
    """All images within `eps` of the original in `norm`, and inside [0, 1]."""

    norm: str
    eps: float

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise unknown_name("norm", self.norm, NORMS)
        check_eps(self.eps, self.norm)

    def __str__(self) -> str:
        return f"{self.norm} {format_eps(self.eps)}"

    def scaled(self, factor: float) -> ThreatModel:
        """Return the same ball with its radius multiplied by `factor`."""
        return ThreatModel(self.norm, self.eps * factor)

    def distance(self, adv: Tensor, images: Tensor) -> Tensor:
        """Return the distance between images in this norm: (B, ...), (B, ...) -> (B,)."""
        delta = (adv - images).flatten(1)
        return delta.abs().amax(1) if self.norm == "Linf" else delta.norm(dim=1)

    def project(self, adv: Tensor, images: Tensor) -> Tensor:
        """Project images onto the ball, then clip them to [0, 1]."""
        if self.norm == "Linf":
            delta = (adv - images).clamp_(-self.eps, self.eps)
        else:
            delta = adv - images
            length = delta.flatten(1).norm(dim=1).clamp_min_(1e-12)  # eps 0 and delta 0 stay 0
            delta = delta * per_image((self.eps / length).clamp_max_(1.0), delta)
        return delta.add_(images).clamp_(0.0, 1.0)

    def direction(self, grad: Tensor) -> Tensor:
        """Return the steepest-ascent direction of length 1 in this norm. A zero gradient gives zero, NaN stays NaN."""
        if self.norm == "Linf":
            return torch.where(grad.isnan(), grad, grad.sign())  # torch's sign of NaN is 0
        # Scale before squaring: gradients of confident models underflow in float32.
        tiny = torch.finfo(grad.dtype).tiny  # not below: a processor may flush it to 0, and 0 / 0 is NaN
        grad = grad / per_image(grad.flatten(1).abs().amax(1).clamp_min(tiny), grad)
        return grad / per_image(grad.flatten(1).norm(dim=1).clamp_min(tiny), grad)

    def step(self, adv: Tensor, grad: Tensor, length: float, images: Tensor) -> Tensor:
        """Take a step of size `length` along the ascent direction of `grad`, and project."""
        return self.project(adv + length * self.direction(grad), images)

    def random_start(self, images: Tensor, rng: KeyedRng) -> Tensor:
        """Draw random images in the ball: uniform for Linf; uniform direction and length for L2."""
        if self.norm == "Linf":
            return self.project(images + self.eps * (2 * rng.uniform_like(images) - 1), images)
        delta = self.direction(rng.normal_like(images))
        length = self.eps * rng.child("length").uniform()
        return self.project(images + delta * per_image(length, delta), images)

    def check(self, adv: Tensor, images: Tensor, who: str) -> None:
        """Raise ThreatModelError unless every image is finite, in [0, 1] and in the ball.

        The tolerance, 1e-6 + 1e-5 eps, is the rounding of a float32 norm over some 1e5 values.

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
        outside = distance > self.eps + 1e-6 + 1e-5 * self.eps
        if bool(outside.any()):
            raise ThreatModelError(
                f"{who} left the threat model on {int(outside.sum())} of {len(adv)} images: "
                f"max ||delta||_{'inf' if self.norm == 'Linf' else '2'} = {distance.max():.4g} "
                f"> eps = {self.eps:.4g}"
            )
