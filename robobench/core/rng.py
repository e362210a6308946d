"""Stateless random numbers: every draw is a hash of its key, so no random state is saved or restored.

A draw is keyed by (seed, stage or attack, epoch, image index, name of the draw). Interrupting, sharding or reordering
the work does not change a draw, and an image gets the same numbers on every device.

Source: the finalizer of SplitMix64, Steele et al., OOPSLA 2014, applied to a counter.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def seed_from(*parts: str | int) -> int:
    """Hash the parts to a signed 64-bit seed, the same on every machine."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Shift int64 right and fill with zeros. torch's own shift copies the sign."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """Apply SplitMix64's finalizer in place."""
    x ^= _shift_right(x, 30)
    x *= _MIX_1
    x ^= _shift_right(x, 27)
    x *= _MIX_2
    x ^= _shift_right(x, 31)
    return x


class KeyedRng:
    """A random number generator for a batch, keyed per image: an image's draws do not depend on its batch.

    Attributes:
        keys: (B,) int64.
        index: (B,) int64, the positions of the images in their data set.
    """

    __slots__ = ("index", "keys")

    def __init__(self, keys: Tensor, index: Tensor) -> None:
        self.keys = keys
        self.index = index

    @classmethod
    def of(cls, index: Tensor, *parts: str | int) -> KeyedRng:
        """Return a generator for the images at `index` (B,) int64, keyed by index and parts."""
        return cls(_mix(_mix(index * _GOLDEN) + seed_from(*parts)), index)

    def child(self, *parts: str | int) -> KeyedRng:
        """Return an independent generator for a name. The same name always gives the same generator."""
        return KeyedRng(_mix(self.keys + seed_from("child", *parts)), self.index)

    def __getitem__(self, keep: Tensor | slice) -> KeyedRng:
        return KeyedRng(self.keys[keep], self.index[keep])

    def _bits(self, shape: tuple[int, ...]) -> Tensor:
        """Draw 24 random bits per element, (B, *shape) int64. One hash serves two elements."""
        count = math.prod(shape)
        counter = torch.arange(1, (count + 1) // 2 + 1, device=self.keys.device) * _GOLDEN
        hashed = _mix(self.keys[:, None] + counter)
        both = torch.stack((_shift_right(hashed, 40), hashed & 0xFFFFFF), dim=2).flatten(1)
        return both[:, :count].view(len(self.keys), *shape)

    def uniform(self, *shape: int) -> Tensor:
        """Draw (B, *shape) float32, uniform in [0, 1)."""
        return self._bits(shape).float().mul_(2.0**-24)

    def normal(self, *shape: int) -> Tensor:
        """Draw (B, *shape) float32, standard normal."""
        return self._bits(shape).double().add_(0.5).mul_(2.0**-23).sub_(1).erfinv_().mul_(2**0.5).float()

    def uniform_like(self, images: Tensor) -> Tensor:
        """Draw uniform numbers in the shape of `images` (B, ...)."""
        return self.uniform(*images.shape[1:])

    def normal_like(self, images: Tensor) -> Tensor:
        """Draw normal numbers in the shape of `images` (B, ...)."""
        return self.normal(*images.shape[1:])

    def seed(self) -> int:
        """Return a seed in [0, 2**31) for a library with its own generator."""
        return int(_mix(self.keys.sum().clone())) & 0x7FFFFFFF


def permutation(count: int, *parts: str | int) -> Tensor:
    """Return a random permutation (count,) int64, keyed by the parts."""
    return KeyedRng.of(torch.arange(count), *parts).keys.argsort()
