"""Losses that several methods share."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """KL(p || q) per example, in nats: logits (B, K), (B, K) -> (B,). Its batchmean is `.mean()`."""
    log_p, log_q = F.log_softmax(p_logits, dim=1), F.log_softmax(q_logits, dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)
