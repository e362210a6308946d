"""Losses that several methods share, and how a loss changes with the images."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """KL(p || q) per example, in nats: logits (B, K), (B, K) -> (B,). Its batchmean is `.mean()`."""
    log_p, log_q = F.log_softmax(p_logits, dim=1), F.log_softmax(q_logits, dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)


def errs(logits: Tensor, labels: Tensor) -> Tensor:
    """Say where the answer is not the label: (B, K), (B,) -> (B,) bool. NaN is no answer, though argmax takes it."""
    return (logits.argmax(1) != labels) | logits.isnan().any(1)


def others(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the logits (B, K) with the label's own at minus infinity."""
    return logits.scatter(1, labels[:, None], -math.inf)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Measure by how much the best other class beats the label: (B, K) -> (B,), positive where the model errs."""
    return others(logits, labels).amax(1) - logits.gather(1, labels[:, None]).squeeze(1)


def input_gradient(objective: Callable[[Tensor], Tensor], adv: Tensor) -> Tensor:
    """Differentiate the sum of objective(adv) -> (B,) by the images: (B, C, H, W) both ways."""
    with torch.enable_grad():
        leaf = adv.detach().requires_grad_(True)
        return torch.autograd.grad(objective(leaf).sum(), leaf)[0]
