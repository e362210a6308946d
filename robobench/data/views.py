"""Random views of images for contrastive learning. Each image has its own keyed random draws.

Source: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020,
arXiv:2002.05709. Views are made from float images on their device, without rounding between color operations.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from robobench.core.rng import KeyedRng
from robobench.data.augment import flip


def contrastive_view(
    images: Tensor, rng: KeyedRng, *, color_jitter: float, grayscale_prob: float, hflip: bool, min_crop_area: float
) -> Tensor:
    """Draw a random view of each image: color jitter (p = 0.8), grayscale, flip, resized crop.

    Args:
        images: (B, 3, H, W) in [0, 1].
        color_jitter: strength for brightness, contrast, saturation; a quarter of it for hue.
        hflip: flip horizontally with probability 1/2.
        min_crop_area: smallest crop, as a fraction of the image area.
    """
    if color_jitter:
        chosen = rng.child("jitter?").uniform() < 0.8
        jittered = jitter(images, rng.child("jitter"), color_jitter)
        images = torch.where(chosen.view(-1, 1, 1, 1), jittered, images)
    grayed = rng.child("gray").uniform() < grayscale_prob
    images = torch.where(grayed.view(-1, 1, 1, 1), grayscale(images), images)
    if hflip:
        images = flip(images, rng.child("flip"))
    return resized_crop(images, rng.child("crop"), min_crop_area)


def grayscale(images: Tensor) -> Tensor:
    """Return the luma of ITU-R BT.601: (B, 3, H, W) -> (B, 1, H, W)."""
    red, green, blue = torch.split(images, 1, dim=1)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def jitter(images: Tensor, rng: KeyedRng, strength: float) -> Tensor:
    """Change brightness, contrast, saturation and hue by random factors, in a random order per image."""
    order = rng.child("order").uniform(4).argsort(dim=1)
    change = strength * (2 * rng.child("change").uniform(4) - 1)  # (B, 4)
    for turn in range(4):
        kind = order[:, turn].view(-1, 1, 1, 1)
        amount = change.gather(1, order[:, turn : turn + 1]).view(-1, 1, 1, 1)
        gray = grayscale(images)
        mean = gray.mean((2, 3), keepdim=True)
        other = torch.where(kind == 0, 0.0, torch.where(kind == 1, mean, gray))  # brightness, contrast, saturation
        blended = torch.lerp(other.expand_as(images), images, 1 + amount).clamp(0, 1)
        images = torch.where(kind == 3, shift_hue(images, amount / 4), blended)
    return images


def shift_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Shift the hue (HSV) by `turns` (B, 1, 1, 1), as fractions of the full circle."""
    red, green, blue = images.unbind(1)
    value, largest = images.max(dim=1)
    span = value - images.amin(dim=1)
    differences = torch.stack((green - blue, blue - red, red - green), dim=1)
    sixth = differences.gather(1, largest[:, None])[:, 0] / span.clamp_min(1e-8) + 2 * largest
    offsets = torch.arange(5.0, 0.0, -2.0, device=images.device).view(1, 3, 1, 1)
    k = (offsets + sixth[:, None] + 6 * turns) % 6
    return value[:, None] - span[:, None] * torch.minimum(k, 4 - k).clamp(0, 1)


def resized_crop(images: Tensor, rng: KeyedRng, min_area: float) -> Tensor:
    """Crop a box of random area and aspect ratio (3:4 to 4:3) from each image and resize it bilinearly to full size.

    Boxes are drawn as in torchvision's RandomResizedCrop: the first of ten that fits, else the whole image.
    """
    count, _, height, width = images.shape
    area = height * width * (min_area + (1 - min_area) * rng.child("area").uniform(10))
    ratio = ((2 * rng.child("ratio").uniform(10) - 1) * math.log(4 / 3)).exp()
    sides = torch.stack(((area / ratio).sqrt(), (area * ratio).sqrt()), dim=2).round()  # (B, 10, 2)
    full = height + (width - height) * torch.arange(2, device=images.device)  # created on the device, not copied to it
    fits = ((sides >= 1) & (sides <= full)).all(2)
    first = fits.int().argmax(1)  # the first that fits; 0 if none does
    box = sides[torch.arange(count, device=images.device), first]
    box = torch.where(fits.any(1)[:, None], box, full)  # (B, 2)
    corner = (rng.child("corner").uniform(2) * (full - box + 1)).floor()
    axes = []
    for axis, size in enumerate((height, width)):
        steps = torch.arange(size, device=images.device) + 0.5
        inside = (steps * box[:, axis, None] / size - 0.5).clamp_min(0).minimum(box[:, axis, None] - 1)
        axes.append((2 * (corner[:, axis, None] + inside) + 1) / size - 1)  # grid_sample's coordinates run from -1 to 1
    rows, columns = axes
    grid = torch.stack((columns[:, None, :].expand(-1, height, -1), rows[:, :, None].expand(-1, -1, width)), dim=3)
    cut = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return cut.clamp(0, 1)
