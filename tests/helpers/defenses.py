"""Batches, set-ups and hand-computed losses for the tests of defenses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from robobench.core.rng import KeyedRng
from robobench.core.threat import ThreatModel
from robobench.training.base import Batch, DefenseSetup, FrozenModel
from robobench.training.inner_maximization import AdvTrainConfig
from tests.helpers.toys import TinyBatchNormNet

THREAT = ThreatModel("Linf", 0.1)

# Student probabilities on two clean images and on their adversarial examples, and the labels.
CLEAN, ADV = [[0.7, 0.2, 0.1], [0.2, 0.3, 0.5]], [[0.3, 0.3, 0.4], [0.6, 0.3, 0.1]]
LABELS = torch.tensor([0, 2])


class Echo(nn.Module):
    """Logits are the images, shifted by a bias and times a weight to differentiate by."""

    def __init__(self, *bias: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.bias = torch.tensor(bias or (0.0, 0.0, 0.0))

    def forward(self, images: Tensor) -> Tensor:
        return (images.flatten(1) + self.bias) * self.scale


def images_of(probs: Sequence[Sequence[float]]) -> Tensor:
    """Images (B, K, 1, 1) that make `Echo` without a bias predict these probabilities."""
    return torch.tensor(probs).log().view(len(probs), -1, 1, 1)


def softmax(logits: Sequence[float], temperature: float = 1.0) -> list[float]:
    weights = [math.exp(z / temperature) for z in logits]
    return [w / sum(weights) for w in weights]


def echo_probs(bias: Sequence[float], probs: Sequence[Sequence[float]], temperature: float = 1.0) -> list[list[float]]:
    """What an `Echo` with this bias predicts on `images_of(probs)`, without torch's functions."""
    return [softmax([math.log(p) + b for p, b in zip(row, bias, strict=True)], temperature) for row in probs]


def kl_by_hand(p: Sequence[float], q: Sequence[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def mean_kl(ps: Sequence[Sequence[float]], qs: Sequence[Sequence[float]], weights: Sequence[float] = (1, 1)) -> float:
    """The mean over images of weight * KL(p || q)."""
    return sum(w * kl_by_hand(p, q) for w, p, q in zip(weights, ps, qs, strict=True)) / len(ps)


def batch_of(images: Tensor, labels: Tensor, epoch: int = 0, index: Tensor | None = None) -> Batch:
    index = torch.arange(len(images)) if index is None else index
    return Batch(images, labels, index, epoch, KeyedRng.of(index, "test", epoch))


def setup_of(model: nn.Module | None = None, **changes: Any) -> DefenseSetup:
    """A set-up for 8 x 8 images of three classes; without a model with a small one from a fixed seed."""
    if model is None:
        torch.manual_seed(0)
        model = TinyBatchNormNet()
    values = {"threat": THREAT, "num_classes": 3, "image_shape": (3, 8, 8), "train_size": 24, **changes}
    return DefenseSetup(model=model, **values)


def frozen_models(roles: Sequence[str], make: type[nn.Module] = TinyBatchNormNet) -> dict[str, FrozenModel]:
    return {role: FrozenModel(make()) for role in roles}


def skip_attack(monkeypatch: Any) -> None:
    """Make the inner maximization return its start."""
    monkeypatch.setattr(AdvTrainConfig, "pgd_ascent", lambda self, objective, start, *rest: start)
