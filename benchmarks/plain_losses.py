"""Losses of plain training loops, written as in the repositories of AT, TRADES and AdaAD; MACD's follows its paper.

Each takes (model, teacher, images, labels) and makes its adversarial examples itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS, STEP, INNER = 8 / 255, 2 / 255, 10
Gradient = Callable[[Tensor], Tensor]


def ascend(adv: Tensor, images: Tensor, gradient: Gradient) -> Tensor:
    """Take the inner steps, as in all three repositories."""
    for _ in range(INNER):
        adv = adv.detach().requires_grad_(True)
        adv = adv.detach() + STEP * gradient(adv).sign()
        adv = torch.min(torch.max(adv, images - EPS), images + EPS).clamp(0, 1)
    return adv.detach()


def ascend_from_noise(model: nn.Module, images: Tensor, gradient: Gradient) -> Tensor:
    """Start at the image plus 0.001 N(0, 1), with the model in eval mode, as in TRADES and AdaAD."""
    model.eval()
    adv = ascend(images + 0.001 * torch.randn_like(images), images, gradient)
    model.train()
    return adv


def kl(target: Tensor, logits: Tensor, reduction: str) -> Tensor:
    """KL(target || logits) of two sets of logits."""
    return F.kl_div(F.log_softmax(logits, 1), F.softmax(target, 1), reduction=reduction)


def plain_at(model: nn.Module, teacher: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Attack in train mode with full backward passes, as locuslab; the parameters' gradients are discarded.

    Two further forward passes per step there, for restarts and the log, are left out.
    """

    def gradient(adv: Tensor) -> Tensor:
        F.cross_entropy(model(adv), labels).backward()  # type: ignore[no-untyped-call]
        assert adv.grad is not None
        return adv.grad

    start = (images + torch.empty_like(images).uniform_(-EPS, EPS)).clamp(0, 1)
    adv = ascend(start, images, gradient)
    model.zero_grad()
    return F.cross_entropy(model(adv), labels)


def plain_trades(model: nn.Module, teacher: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Repeat the forward pass of the clean images in every step and twice in the loss, as the repository does."""

    def gradient(adv: Tensor) -> Tensor:
        return torch.autograd.grad(kl(model(images), model(adv), "sum"), [adv])[0]

    adv = ascend_from_noise(model, images, gradient)
    clean_loss = F.cross_entropy(model(images), labels)
    return clean_loss + 6.0 * kl(model(images), model(adv), "batchmean")


def plain_adaad(model: nn.Module, teacher: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Run the clean term of weight zero too, forward and backward, as the repository does."""

    def gradient(adv: Tensor) -> Tensor:
        return torch.autograd.grad(kl(teacher(adv), model(adv), "sum"), [adv])[0]

    adv = ascend_from_noise(model, images, gradient)
    clean_logits, adv_logits = model(images), model(adv)
    with torch.no_grad():
        clean_target, adv_target = teacher(images), teacher(adv)
    return 1.0 * kl(adv_target, adv_logits, "mean") + 0.0 * kl(clean_target, clean_logits, "mean")


def plain_macd(model: Any, objective: Any, images: Tensor, labels: Tensor) -> Tensor:
    """Mask the student's blocks and the teacher's tokens, and return the loss of eq. 5 and 6."""
    config, frozen_teacher = objective.config, objective.teacher.module
    side = images.shape[-1] // config.student_patch

    def kept(count: int, mask_ratio: float) -> Tensor:
        order = torch.rand(len(images), count, device=images.device).argsort(1)
        return order[:, : round(count * (1 - mask_ratio))]

    blocks = images.new_zeros(len(images), side * side)
    blocks.scatter_(1, kept(side * side, config.student_mask_ratio), 1.0)
    masked = images * F.interpolate(blocks.view(-1, 1, side, side), images.shape[-2:])
    features: Tensor = model.features(masked)
    with torch.no_grad():
        target = frozen_teacher(images, kept(frozen_teacher.encoder.count, config.teacher_mask_ratio))
    distance = (F.normalize(features) - F.normalize(target)).square().sum(1).mean()
    class_loss = F.cross_entropy(model.head(features), labels)
    return kl(target, features, "batchmean") + distance + class_loss


PLAIN = {"at": plain_at, "trades": plain_trades, "adaad": plain_adaad, "macd": plain_macd}
