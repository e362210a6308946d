"""MixUp and CutMix: pairs of images in one. Each image has its own keyed random draws.

Sources: Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018, arXiv:1710.09412; Yun et al., "CutMix",
ICCV 2019, arXiv:1905.04899.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robobench.core.rng import KeyedRng


def mix(images: Tensor, partners: Tensor, rng: KeyedRng, mixup: float, cutmix: float) -> tuple[Tensor, Tensor]:
    """Mix each image (B, C, H, W) with its partner.

    Args:
        mixup, cutmix: alpha of Beta(alpha, alpha), from which the share of the image is drawn; 0: off. If both are
            above 0, each image gets one of them with probability 1/2.

    Returns:
        The mixed images, and the share (B,) of each image in its mixture; for CutMix that of its pixels.
    """
    draw = rng.child("share").uniform()
    blended, blended_share = _mixup(images, partners, beta_quantile(mixup, draw)) if mixup else (images, draw)
    if not cutmix:
        return blended, blended_share
    pasted, pasted_share = _cutmix(images, partners, beta_quantile(cutmix, draw), rng.child("box").uniform(2))
    if not mixup:
        return pasted, pasted_share
    cut = rng.child("which").uniform() < 0.5
    return torch.where(cut.view(-1, 1, 1, 1), pasted, blended), torch.where(cut, pasted_share, blended_share)


def beta_quantile(alpha: float, probability: Tensor) -> Tensor:
    """Return the quantiles of Beta(alpha, alpha) at probabilities (B,), which makes uniform draws Beta draws."""
    if alpha == 1:
        return probability
    from scipy.special import betaincinv

    values = betaincinv(alpha, alpha, probability.double().cpu().numpy())
    return torch.from_numpy(values).to(probability)


def _mixup(images: Tensor, partners: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    return torch.lerp(partners, images, share.view(-1, 1, 1, 1).to(images.dtype)), share


def _cutmix(images: Tensor, partners: Tensor, share: Tensor, center: Tensor) -> tuple[Tensor, Tensor]:
    """Paste a box of the partner: its sides are sqrt(1 - share) of the image's, cut off at the border."""
    inside = torch.ones_like(images[:, 0], dtype=torch.bool)
    for axis, size in enumerate(images.shape[2:]):
        half = ((1 - share).sqrt() * size).long() // 2
        middle = (center[:, axis] * size).long()
        place = torch.arange(size, device=images.device)
        within = (place >= (middle - half)[:, None]) & (place < (middle + half)[:, None])  # (B, size)
        inside &= within[:, :, None] if axis == 0 else within[:, None, :]
    mixed = torch.where(inside[:, None], partners, images)
    return mixed, 1 - inside.flatten(1).float().mean(1)
