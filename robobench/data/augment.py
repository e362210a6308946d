"""Augment batches on their device. Each image has its own keyed random draws."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from robobench.core.rng import KeyedRng


def flip(images: Tensor, rng: KeyedRng) -> Tensor:
    """Flip each image (B, C, H, W) horizontally with probability 0.5."""
    flipped = rng.uniform() < 0.5
    return torch.where(flipped.view(-1, 1, 1, 1), images.flip(3), images)


def crop(images: Tensor, rng: KeyedRng, padding: int = 4) -> Tensor:
    """Pad each image (B, C, H, W) with zeros, then take a random crop of the original size."""
    size, (height, width) = 2 * padding + 1, images.shape[2:]
    offsets = (rng.uniform(2) * size).long()  # (B, 2)
    padded = F.pad(images, [padding] * 4)
    device = images.device
    rows = offsets[:, 0, None] + torch.arange(height, device=device)
    columns = offsets[:, 1, None] + torch.arange(width, device=device)
    batch = torch.arange(len(images), device=device)[:, None, None]
    crops = padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]]
    return crops.permute(0, 3, 1, 2)


def augment(images: Tensor, rng: KeyedRng, mode: str) -> Tensor:
    """Augment images (B, C, H, W): "crop-flip" (pad an eighth of the width, crop, flip), "flip" or "none"."""
    if mode == "crop-flip":
        images = crop(images, rng.child("crop"), max(1, images.shape[2] // 8))
    if mode in ("crop-flip", "flip"):
        images = flip(images, rng.child("flip"))
    return images
