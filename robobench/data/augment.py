"""Augmentation of a batch on its device, every image by its own keyed draw."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from robobench.core.rng import KeyedRng


def flip(images: Tensor, rng: KeyedRng) -> Tensor:
    """Mirror each image (B, C, H, W) left to right with probability one half."""
    mirrored = rng.uniform() < 0.5
    return torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)


def crop(images: Tensor, rng: KeyedRng, padding: int = 4) -> Tensor:
    """Shift each image by up to `padding` pixels each way, filling with zeros (pad, then random crop)."""
    size, (height, width) = 2 * padding + 1, images.shape[2:]
    offsets = (rng.uniform(2) * size).long()  # (B, 2)
    padded = F.pad(images, [padding] * 4)
    device = images.device
    rows = offsets[:, 0, None] + torch.arange(height, device=device)
    columns = offsets[:, 1, None] + torch.arange(width, device=device)
    batch = torch.arange(len(images), device=device)[:, None, None]
    picked = padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)


def augment(images: Tensor, rng: KeyedRng, how: str) -> Tensor:
    """Apply a recipe's augmentation: "crop-flip" (pad 4, crop, mirror), "flip" or "none"."""
    if how == "crop-flip":
        images = crop(images, rng.child("crop"), max(1, images.shape[2] // 8))
    if how in ("crop-flip", "flip"):
        images = flip(images, rng.child("flip"))
    return images
