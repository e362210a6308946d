"""Order of the training images: which ones form the batches of an epoch, with or without extra images."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from robobench.core.rng import permutation
from robobench.training.context import ImageSource


class MixedImages:
    """Training images and extra ones, such as generated images. Extra image i has the number len(real) + i.

    Attributes:
        fraction: of extra images in each batch.
    """

    def __init__(self, real: ImageSource, extra: ImageSource, fraction: float) -> None:
        self.real, self.extra, self.fraction = real, extra, fraction
        self.labels = torch.cat((real.labels, extra.labels.to(real.labels.device)))

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, index: Tensor) -> Tensor:
        """Return images (B, 3, H, W) for an index (B,) int64."""
        is_extra = index >= len(self.real)
        parts = [self.real.images(index[~is_extra]), self.extra.images(index[is_extra] - len(self.real))]
        return torch.cat(parts)[torch.argsort(is_extra.int(), stable=True).argsort().to(parts[0].device)]


def images_per_epoch(data: ImageSource) -> int:
    """Return the number of images of an epoch: that of the real images, also with extra ones."""
    return len(data.real if isinstance(data, MixedImages) else data)


def batch_sizes(count: int, batch_size: int) -> list[int]:
    """Return batch sizes of an epoch. They are nearly equal, since a small last batch would disturb BatchNorm."""
    batches = max(1, math.ceil(count / batch_size))
    return [count // batches + (i < count % batches) for i in range(batches)]


def epoch_batches(data: ImageSource, batch_size: int, epoch: int, *key: str | int) -> tuple[Tensor, ...]:
    """Return the image numbers of each batch of an epoch, in an order that depends on key and epoch only.

    Without extra images, every image is in one batch. With them, each batch has its fraction of extra images, rounded
    to whole images, and every image of either kind is used once before any is used again.
    """
    sizes = batch_sizes(images_per_epoch(data), batch_size)
    if not isinstance(data, MixedImages):
        return torch.split(permutation(len(data), *key, epoch), sizes)
    extra_sizes = [round(data.fraction * size) for size in sizes]
    real_sizes = [size - extra for size, extra in zip(sizes, extra_sizes, strict=True)]
    real = torch.split(_stream(len(data.real), epoch, sum(real_sizes), *key, "real"), real_sizes)
    extra = torch.split(_stream(len(data.extra), epoch, sum(extra_sizes), *key, "extra"), extra_sizes)
    batches = (torch.cat((a, len(data.real) + b)) for a, b in zip(real, extra, strict=True))
    return tuple(batch[permutation(len(batch), *key, epoch, n)] for n, batch in enumerate(batches))


def _stream(count: int, epoch: int, per_epoch: int, *key: str | int) -> Tensor:
    """Return an epoch's part of an endless sequence of permutations of `count` images."""
    begin, parts = epoch * per_epoch, []
    while begin < (epoch + 1) * per_epoch:
        number, at = divmod(begin, count)
        parts.append(_permutation(count, *key, number)[at : at + (epoch + 1) * per_epoch - begin])
        begin += len(parts[-1])
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)


@lru_cache(maxsize=2)
def _permutation(count: int, *key: str | int) -> Tensor:
    """Return a permutation of up to millions of images, which several epochs use."""
    return permutation(count, *key)
