"""Small models and data with known results."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LinearTwoClass(nn.Module):
    """A linear classifier. An attack in an Linf (L2) ball lowers the logit gap by at most eps ||w||_1 (||w||_2)."""

    def __init__(self, shape: tuple[int, int, int], seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        count = shape[0] * shape[1] * shape[2]
        self.w = nn.Parameter(torch.randn(count, generator=generator) / count)
        self.bias = nn.Parameter(torch.tensor(0.0))

    def gap(self, images: Tensor) -> Tensor:
        """Logit of class 0 minus that of class 1: (B, C, H, W) -> (B,)."""
        return (images - 0.5).flatten(1) @ self.w + self.bias

    def forward(self, images: Tensor) -> Tensor:
        gap = self.gap(images)
        return torch.stack((gap / 2, -gap / 2), dim=1)


class TinyBatchNormNet(nn.Module):
    """A convolution, BatchNorm and a linear head, with `features` and `head`. It trains within a second."""

    def __init__(self, num_classes: int = 3, channels: int = 8) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU())
        self.head = nn.Linear(channels, num_classes)

    def features(self, images: Tensor) -> Tensor:
        return self.body(images).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


def color_blobs(count: int, num_classes: int = 3, size: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Separable noisy images in [0, 1] of `num_classes` <= 3 mean colors: (N, 3, S, S), (N,)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % num_classes
    images = 0.35 + 0.1 * torch.rand(count, 3, size, size, generator=generator)
    images[torch.arange(count), labels] += 0.3
    return images, labels


class FakeClock:
    """A clock that moves only when a test sets `now`."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


# A user's file with functions that build models, or fail to.
FACTORY = """
from torch import nn

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        self.head = nn.Linear(4, classes)
    def features(self, images):
        return self.body(images).mean((2, 3))
    def forward(self, images):
        return self.head(self.features(images))

def make(num_classes):
    return Net(num_classes)

def bare(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(48, num_classes))

def broken(num_classes):
    raise KeyError("no such weights")

def number(num_classes):
    return num_classes
"""
