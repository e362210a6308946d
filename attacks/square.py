"""Square: random search over square windows, by queries alone, without a gradient.

Paper:   Andriushchenko et al., "Square Attack: a query-efficient black-box adversarial attack via random
         search", ECCV 2020, arXiv:1912.00049: Algorithms 1 to 3.
Code:    the schedule of window sizes and the margin loss are those of github.com/fra31/auto-attack; parity of
         verdicts is tested.
Differs: each image draws its own window and signs, where the released code shares one draw over a batch; a window
         may also touch the last row and column. Images of any shape serve.
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

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of the window's area, for a budget of 10,000 queries
BLOCK = 64  # queries whose draws are made together


@dataclass(frozen=True, kw_only=True)
class SquareConfig:
    queries: int = 5000
    p_init: float = 0.8  # fraction of the image that the first window covers
    rescale_schedule: bool = True  # windows shrink over `queries`; False: over 10,000 queries, as inside AutoAttack

    def __post_init__(self) -> None:
        if self.queries < 1 or not 0 < self.p_init <= 1:
            raise ValueError(f"queries must be >= 1 and p_init lie in (0, 1], got {self.queries}, {self.p_init}")


@ATTACKS.register("square")
class Square(IterativeAttack):
    """Black-box random search over squares, 5,000 queries."""

    Config = SquareConfig
    gradient_free = supports_compile = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"quick": {"queries": 100}}

    @property
    def steps(self) -> int:
        """One query a step."""
        return int(self.config.queries)

    @property
    def cost(self) -> float:
        """One forward a query, and the start."""
        return self.steps + 1.0

    def start(self, images: Tensor, labels: Tensor, rng: KeyedRng) -> AttackState:
        """Start at vertical stripes (Linf) or a chequer of bumps (L2), with random signs."""
        channels, height, width = images.shape[1:]
        if self.threat.norm == "Linf":
            adv = images + self.threat.eps * signs(rng.uniform(channels, 1, width))
        else:
            side = max(min(height, width) // 5, 1)
            rows, columns = height // side, width // side
            tiles = signs(rng.uniform(channels, rows, columns)).to(images.dtype)
            chequer = torch.kron(tiles, bump(side, images))
            bumps = images.new_zeros(images.shape)
            top, left = (height - rows * side) // 2, (width - columns * side) // 2
            bumps[..., top : top + rows * side, left : left + columns * side] = chequer
            adv = images + self.threat.eps * self.threat.direction(bumps)
        adv = adv.clamp(0, 1)
        worst = torch.full((len(images),), -math.inf, device=images.device)
        return AttackState(images, labels, adv, rng, {"best": adv, "margin": worst})

    def step(self, model: nn.Module, state: AttackState) -> tuple[AttackState, Tensor]:
        """Query the candidate, keep it if the margin rose, and propose the next."""
        with torch.no_grad():
            logits = model(state.adv)
        reached = margin(logits, state.labels).to(state.memory["margin"].dtype)
        better = reached > state.memory["margin"]
        best = torch.where(per_image(better, state.adv), state.adv, state.memory["best"])
        worst = torch.where(better, reached, state.memory["margin"])
        height, width = state.images.shape[2:]
        number = state.iteration % BLOCK
        draws = state.memory.get("draws")
        if number == 0 or draws is None:
            draws = state.rng.child("block", state.iteration // BLOCK).uniform(BLOCK, 5 + state.images.shape[1])
        propose = self._linf if self.threat.norm == "Linf" else self._l2
        side = math.sqrt(self._area(state.iteration) * height * width)
        adv = propose(state.images, best, draws[:, number], side)
        return state.advance(adv, best=best, margin=worst, draws=draws), logits

    def finish(self, state: AttackState, logits: Tensor) -> Tensor:
        """Return the image of the largest margin."""
        reached = margin(logits, state.labels).to(state.memory["margin"].dtype)
        better = per_image(reached > state.memory["margin"], state.adv)
        return torch.where(better, state.adv, state.memory["best"])

    def _area(self, query: int) -> float:
        """Return the window's share of the image: halved as the queries go."""
        at = int(query / self.steps * 10_000) if self.config.rescale_schedule else query
        return math.ldexp(self.config.p_init, -bisect.bisect_left(HALVINGS, at))

    def _linf(self, images: Tensor, best: Tensor, draw: Tensor, side: float) -> Tensor:
        """Set a window to plus or minus eps, one sign a channel (Algorithm 2)."""
        size = min(max(round(side), 1), *images.shape[2:])
        window = mask(images, draw[:, 0], draw[:, 1], size)
        jump = self.threat.eps * signs(draw[:, 5:])[:, :, None, None]
        return torch.where(window, (images + jump).clamp_(0, 1), best)

    def _l2(self, images: Tensor, best: Tensor, draw: Tensor, side: float) -> Tensor:
        """Move a window's mass, and what the radius still allows, into a bump in another (Algorithm 3)."""
        eps, channels = self.threat.eps, images.shape[1]
        size = max(round(side), 3)
        size = min(size + (size % 2 == 0), *images.shape[2:])
        delta = best - images
        to, source = (mask(images, draw[:, i], draw[:, i + 1], size) for i in (0, 2))
        squares = delta.square()
        unused = (eps**2 - squares.sum((1, 2, 3))).clamp_min(0)
        mass = (squares * (to | source)).sum((2, 3)) + unused[:, None] / channels  # (B, C)
        held = (squares * to).sum((2, 3)).sqrt()
        pattern = bump(size, images)
        pattern = torch.stack((pattern, pattern.T))[(draw[:, 4] > 0.5).long()]  # (B, S, S)
        index = window_index(images, draw[:, 0], draw[:, 1], size)[:, None].expand(-1, channels, -1)
        new = signs(draw[:, 5:])[:, :, None] * pattern.flatten(1)[:, None]
        new = new + delta.flatten(2).gather(2, index) / (held[:, :, None] + 1e-12)
        new = new * (mass.sqrt() / (new.norm(dim=2) + 1e-12))[:, :, None]
        delta = (delta * ~source).flatten(2).scatter(2, index, new).view_as(images)
        return (images + eps * self.threat.direction(delta)).clamp_(0, 1)


def signs(draws: Tensor) -> Tensor:
    """Turn uniform draws into -1 and 1."""
    return torch.where(draws < 0.5, -1.0, 1.0)


def corner(draws: Tensor, length: int, size: int) -> Tensor:
    """Turn uniform draws (B,) into the first row or column of a window of `size` along `length`: (B,) int64."""
    return (draws * (length - size + 1)).long().clamp_max(length - size)


def mask(images: Tensor, rows: Tensor, columns: Tensor, size: int) -> Tensor:
    """Mark one window an image: (B, 1, H, W) bool."""
    height, width = images.shape[2:]
    down = torch.arange(height, device=images.device) - corner(rows, height, size)[:, None]
    across = torch.arange(width, device=images.device) - corner(columns, width, size)[:, None]
    down, across = ((offset >= 0) & (offset < size) for offset in (down, across))
    return (down[:, :, None] & across[:, None, :])[:, None]


def window_index(images: Tensor, rows: Tensor, columns: Tensor, size: int) -> Tensor:
    """Number the pixels of one window an image in a flattened channel: (B, S * S) int64."""
    height, width = images.shape[2:]
    reach = torch.arange(size, device=images.device)
    down = corner(rows, height, size)[:, None] + reach
    across = corner(columns, width, size)[:, None] + reach
    return (down[:, :, None] * width + across[:, None, :]).flatten(1)


def bump(size: int, images: Tensor) -> Tensor:
    """Make the L2 pattern of a window: a positive pyramid above a negative one, of length 1: (S, S)."""
    upper = size // 2
    pattern = torch.cat((pyramid(upper, size), -pyramid(size - upper, size)))
    unit: Tensor = pattern / pattern.norm()
    return unit.to(images)


def pyramid(height: int, width: int) -> Tensor:
    """Sum 1 / n^2 over centered rectangles, each two wider and higher than the last, and scale to length 1 (sec. 4)."""
    rows = (torch.arange(height) - height // 2).abs()[:, None]
    columns = (torch.arange(width) - width // 2).abs()[None, :]
    steps = torch.maximum(rows, columns)  # the smallest rectangle that holds the pixel
    last = max(height // 2, width // 2) + 1
    heights = torch.cumsum((1.0 / torch.arange(1, last + 1) ** 2).flip(0), 0).flip(0)
    pattern = heights[steps]
    unit: Tensor = pattern / pattern.norm().clamp_min(1e-12)
    return unit
