"""Augment batches on their device. Each image has its own keyed random draws.

Cropping and flipping are vectorized. The policies of torchvision (AutoAugment and the like) run image by image, with
torch's generator seeded by the image's key, so that resuming and several devices give the same images.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from robobench.core.rng import KeyedRng

BASE = ("crop-flip", "crop", "flip", "none")
POLICIES = ("randaugment", "trivialaugment", "autoaugment", "color-jitter", "erasing")


def parse_augmentation(text: str) -> tuple[str, ...]:
    """Return the steps of an augmentation such as "crop-flip+randaugment".

    Raises:
        ValueError: a step is unknown, or stands in the wrong place.
    """
    base, *policies = steps = tuple(text.split("+"))
    if base not in BASE or any(name not in POLICIES for name in policies):
        allowed = f"one of {', '.join(BASE)}, then any of +{', +'.join(POLICIES)}"
        raise ValueError(f"augment must be {allowed}, got {text}")
    return steps


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
    """Augment images (B, C, H, W) in [0, 1].

    "crop-flip" pads an eighth of the width, crops and flips; "crop" and "flip" do one of the two, "none" neither.
    Policies follow after "+": randaugment (2 operations, magnitude 9), trivialaugment, autoaugment (the policy of
    CIFAR-10 up to 64 px, of ImageNet above), color-jitter (0.4 for brightness, contrast and saturation), erasing (a
    rectangle, with probability 0.25).
    """
    base, *policies = mode.split("+")
    if base in ("crop-flip", "crop"):
        images = crop(images, rng.child("crop"), max(1, images.shape[2] // 8))
    if base in ("crop-flip", "flip"):
        images = flip(images, rng.child("flip"))
    for name in policies:
        images = _apply_policy(images, rng.child(name), name)
    return images


def _apply_policy(images: Tensor, rng: KeyedRng, name: str) -> Tensor:
    transform = _policy(name, small=max(images.shape[2:]) <= 64)
    changed = []
    with torch.random.fork_rng(devices=[]):
        for image, key in zip(images, rng.keys.tolist(), strict=True):
            torch.default_generator.manual_seed(key)  # torch.manual_seed would also seed the GPUs
            changed.append(transform(image))
    return torch.stack(changed).clamp_(0, 1)


@cache
def _policy(name: str, small: bool) -> Any:
    """Return a transform of torchvision with its default settings."""
    from torchvision.transforms import v2

    match name:
        case "randaugment":
            return v2.RandAugment()
        case "trivialaugment":
            return v2.TrivialAugmentWide()
        case "autoaugment":
            return v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10 if small else v2.AutoAugmentPolicy.IMAGENET)
        case "color-jitter":
            return v2.ColorJitter(0.4, 0.4, 0.4)
        case _:
            return v2.RandomErasing(p=0.25)
