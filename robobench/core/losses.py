"""Losses and predictions that several methods use. Every function works per image."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_LOG_ODDS = -12.0  # of the wrong classes; below, the cross-entropy's gradient has less than 1 % precision in float32


def kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """Return KL(p || q) in nats: logits (B, K) and (B, K) -> (B,). torch's "batchmean" is its `.mean()`."""
    log_p, log_q = F.log_softmax(p_logits, dim=1), F.log_softmax(q_logits, dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)


def is_near_chance(accuracy: float, images: int, chance: float) -> bool:
    """Return whether an accuracy over `images` is at most three standard deviations above that of guessing."""
    return accuracy <= chance + 3 * math.sqrt(chance * (1 - chance) / images)


def soft_label_kl(probs: Tensor, logits: Tensor) -> Tensor:
    """Return sum_k p (log(p + 1e-5) - log q), the KL of RSLAD's code and of later ones: (B, K), (B, K) -> (B,)."""
    return (probs * ((probs + 1e-5).log() - F.log_softmax(logits, dim=1))).sum(1)


def is_misclassified(logits: Tensor, labels: Tensor) -> Tensor:
    """Return whether each prediction is wrong: (B, K), (B,) -> (B,) bool. NaN logits count as wrong."""
    return (logits.argmax(1) != labels) | logits.isnan().any(1)  # argmax treats NaN as the largest logit


def mask_true_class(logits: Tensor, labels: Tensor) -> Tensor:
    """Return logits (B, K) with the logit of the true class set to minus infinity."""
    return logits.scatter(1, labels[:, None], -math.inf)


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the largest wrong logit minus the true one: (B, K), (B,) -> (B,). Positive where misclassified."""
    return mask_true_class(logits, labels).amax(1) - logits.gather(1, labels[:, None]).squeeze(1)


def attack_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy in nats, (B, K), (B,) -> (B,), with a gradient that does not underflow.

    It is log(1 + exp(u)) of the log odds u of the wrong classes. Below u = -12 it is continued as a straight line in u,
    which attacks cannot distinguish by direction or order: logits of any scale give the same perturbation.
    """
    log_odds = mask_true_class(logits, labels).logsumexp(1) - logits.gather(1, labels[:, None]).squeeze(1)
    least = math.log1p(math.exp(MIN_LOG_ODDS))
    line = least * (1 + log_odds - MIN_LOG_ODDS)
    return torch.where(log_odds < MIN_LOG_ODDS, line, F.cross_entropy(logits, labels, reduction="none"))
