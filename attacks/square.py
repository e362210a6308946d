"""Square: black-box random search that changes one square window per query.

Paper:   Andriushchenko et al., "Square Attack: a query-efficient black-box adversarial attack via random search",
         ECCV 2020, arXiv:1912.00049, Algorithms 1 to 3. L1: Croce and Hein, "Mind the box: l1-APGD for sparse
         adversarial attacks on image classifiers", ICML 2021, arXiv:2103.01208, section 4.2.
Code:    github.com/fra31/auto-attack; same window schedule and margin loss. A test compares outcomes per image.
Differs: every image has its own window position and signs; the code shares some draws over a batch. A window may touch
         the last row and column. Images may have any shape.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robobench.api import ATTACKS, AttackState, IterativeAttack, KeyedRng, margin, per_image

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # queries, of 10,000, after which the window area halves
BLOCK = 64  # number of queries that draw their random numbers together


@dataclass(frozen=True, kw_only=True)
class SquareConfig:
    queries: int = 5000
    p_init: float = 0.8  # fraction of the image that the first window covers
    rescale_schedule: bool = True  # scale the window schedule to `queries`; False: 10,000 queries, as in AutoAttack

    def __post_init__(self) -> None:
        if self.queries < 1 or not 0 < self.p_init <= 1:
            raise ValueError(f"queries must be >= 1 and p_init lie in (0, 1], got {self.queries}, {self.p_init}")


@ATTACKS.register("square")
class Square(IterativeAttack):
    """Black-box random search over square windows, 5,000 queries."""

    Config = SquareConfig
    gradient_free = supports_compile = True
    norms = ("Linf", "L2", "L1")
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"quick": {"queries": 100}}

    @property
    def steps(self) -> int:
        """One step per query."""
        return int(self.config.queries)

    @property
    def cost(self) -> float:
        """One forward per query, and one for the start."""
        return self.steps + 1.0

    def start(self, images: Tensor, labels: Tensor, rng: KeyedRng) -> AttackState:
        """Start at vertical stripes (Linf) or a grid of patterns (L2, L1), with random signs."""
        channels, height, width = images.shape[1:]
        if self.threat.norm == "Linf":
            adv = images + self.threat.eps * signs(rng.uniform(channels, 1, width))
        else:
            side = max(min(height, width) // 5, 1)
            rows, columns = height // side, width // side
            tiles = signs(rng.uniform(channels, rows, columns)).to(images.dtype)
            grid = torch.kron(tiles, window_pattern(side, images, self.threat.norm))
            delta = images.new_zeros(images.shape)
            top, left = (height - rows * side) // 2, (width - columns * side) // 2
            delta[..., top : top + rows * side, left : left + columns * side] = grid
            if self.threat.norm == "L1":
                adv = self.threat.project(images + delta, images)
            else:
                adv = images + self.threat.eps * self.threat.direction(delta)
        adv = adv.clamp(0, 1)
        lowest = torch.full((len(images),), -math.inf, device=images.device)
        return AttackState(images, labels, adv, rng, {"best_adv": adv, "best_margin": lowest})

    def step(self, model: nn.Module, state: AttackState) -> tuple[AttackState, Tensor]:
        """Query the candidate, keep it if its margin is larger, and propose the next one."""
        with torch.no_grad():
            logits = model(state.adv)
        margins = margin(logits, state.labels).to(state.memory["best_margin"].dtype)
        better = margins > state.memory["best_margin"]
        best_adv = torch.where(per_image(better, state.adv), state.adv, state.memory["best_adv"])
        best_margin = torch.where(better, margins, state.memory["best_margin"])
        height, width = state.images.shape[2:]
        number = state.iteration % BLOCK
        draws = state.memory.get("draws")
        if number == 0 or draws is None:
            draws = state.rng.child("block", state.iteration // BLOCK).uniform(BLOCK, 5 + state.images.shape[1])
        propose = self._linf if self.threat.norm == "Linf" else self._move_mass
        side = math.sqrt(self._area(state.iteration) * height * width)
        adv = propose(state.images, best_adv, draws[:, number], side)
        return state.advance(adv, best_adv=best_adv, best_margin=best_margin, draws=draws), logits

    def finish(self, state: AttackState, logits: Tensor) -> Tensor:
        """Return the image with the largest margin."""
        margins = margin(logits, state.labels).to(state.memory["best_margin"].dtype)
        better = per_image(margins > state.memory["best_margin"], state.adv)
        return torch.where(better, state.adv, state.memory["best_adv"])

    def _area(self, query: int) -> float:
        """Return the fraction of the image that the window of a query covers."""
        scaled = int(query / self.steps * 10_000) if self.config.rescale_schedule else query
        return math.ldexp(self.config.p_init, -bisect.bisect_left(HALVINGS, scaled))

    def _linf(self, images: Tensor, best: Tensor, draw: Tensor, side: float) -> Tensor:
        """Set the perturbation in a window to eps or -eps, one sign per channel (Algorithm 2)."""
        size = min(max(round(side), 1), *images.shape[2:])
        window = window_mask(images, draw[:, 0], draw[:, 1], size)
        delta = self.threat.eps * signs(draw[:, 5:])[:, :, None, None]
        return torch.where(window, (images + delta).clamp_(0, 1), best)

    def _move_mass(self, images: Tensor, best: Tensor, draw: Tensor, side: float) -> Tensor:
        """Move the mass of one window, and the unused part of eps, to a pattern in another (Algorithm 3).

        The mass of a value is its square (L2) or its absolute value (L1). In L1 the windows' mass is multiplied by the
        number of channels, as in the code, and the projection reduces it.
        """
        eps, channels, power = self.threat.eps, images.shape[1], 2 if self.threat.norm == "L2" else 1
        size = max(round(side), 3)
        size = min(size + (size % 2 == 0), *images.shape[2:])
        delta = best - images
        target, source = (window_mask(images, draw[:, i], draw[:, i + 1], size) for i in (0, 2))
        masses = delta.square() if power == 2 else delta.abs()
        unused = (eps**power - masses.sum((1, 2, 3))).clamp_min(0)
        mass = (masses * (target | source)).sum((2, 3)) + unused[:, None] / channels  # (B, C)
        target_norm = (masses * target).sum((2, 3)) ** (1 / power)
        pattern = window_pattern(size, images, self.threat.norm)
        pattern = torch.stack((pattern, pattern.T))[(draw[:, 4] > 0.5).long()]  # (B, S, S)
        index = window_index(images, draw[:, 0], draw[:, 1], size)[:, None].expand(-1, channels, -1)
        new = signs(draw[:, 5:])[:, :, None] * pattern.flatten(1)[:, None]
        new = new + delta.flatten(2).gather(2, index) / (target_norm[:, :, None] + 1e-12)
        new = new * (mass ** (1 / power) / (new.norm(p=power, dim=2) + 1e-12))[:, :, None]
        if power == 1:
            new = new * channels
        delta = (delta * ~source).flatten(2).scatter(2, index, new).view_as(images)
        if power == 1:
            return self.threat.project(images + delta, images)
        return (images + eps * self.threat.direction(delta)).clamp_(0, 1)


def signs(draws: Tensor) -> Tensor:
    """Turn uniform numbers into -1 and 1."""
    return torch.where(draws < 0.5, -1.0, 1.0)


def corner(draws: Tensor, length: int, size: int) -> Tensor:
    """Turn uniform numbers (B,) into the first row or column of a window of `size` pixels, of `length`: (B,) int64."""
    return (draws * (length - size + 1)).long().clamp_max(length - size)


def window_mask(images: Tensor, rows: Tensor, columns: Tensor, size: int) -> Tensor:
    """Return the mask of one window per image: (B, 1, H, W) bool."""
    height, width = images.shape[2:]
    down = torch.arange(height, device=images.device) - corner(rows, height, size)[:, None]
    across = torch.arange(width, device=images.device) - corner(columns, width, size)[:, None]
    down, across = ((offset >= 0) & (offset < size) for offset in (down, across))
    return (down[:, :, None] & across[:, None, :])[:, None]


def window_index(images: Tensor, rows: Tensor, columns: Tensor, size: int) -> Tensor:
    """Return the pixel indices of one window per image, in a flattened channel: (B, S * S) int64."""
    height, width = images.shape[2:]
    offsets = torch.arange(size, device=images.device)
    down = corner(rows, height, size)[:, None] + offsets
    across = corner(columns, width, size)[:, None] + offsets
    return (down[:, :, None] * width + across[:, None, :]).flatten(1)


def window_pattern(size: int, images: Tensor, norm: str) -> Tensor:
    """Return the pattern of a window, a positive pyramid above a negative one, with length 1 in `norm`: (S, S)."""
    upper, power = size // 2, 2 if norm == "L2" else 1
    pattern = torch.cat((pyramid(upper, size, power), -pyramid(size - upper, size, power)))
    unit: Tensor = pattern / pattern.norm(p=power)
    return unit.to(images)


def pyramid(height: int, width: int, power: int = 2) -> Tensor:
    """Sum 1 / n^2 (L1: 1 / n^4) over centered rectangles that grow by 2 pixels; length 1 (sec. 4): (height, width)."""
    rows = (torch.arange(height) - height // 2).abs()[:, None]
    columns = (torch.arange(width) - width // 2).abs()[None, :]
    steps = torch.maximum(rows, columns)  # the smallest rectangle that holds the pixel
    last = max(height // 2, width // 2) + 1
    exponent = 2 if power == 2 else 4
    heights = torch.cumsum((1.0 / torch.arange(1, last + 1) ** exponent).flip(0), 0).flip(0)
    pattern = heights[steps]
    unit: Tensor = pattern / pattern.norm(p=power).clamp_min(1e-12)
    return unit
