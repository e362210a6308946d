"""Small networks on digits that the gallery's models are made of. They are trained once per process."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from gallery_certified import train  # type: ignore[import-not-found]
from torch import Tensor, nn

from robobench.core.threat import ThreatModel
from robobench.training.inner_maximization import pgd_ascent

TRAIN_THREAT = ThreatModel("Linf", 0.1)


def convolutional(num_classes: int = 10, activation: type[nn.Module] = nn.ReLU, norm: bool = False) -> nn.Module:
    """Return an untrained network for images of 8 px."""
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.BatchNorm2d(12) if norm else nn.Identity(),
        activation(),
        nn.Conv2d(12, 24, 3, stride=2, padding=1),
        activation(),
        nn.Flatten(),
        nn.Linear(384, num_classes),
    )


def fitted(net: nn.Module, epochs: int = 6, threat: ThreatModel | None = None) -> nn.Module:
    """Train a network on the digits, adversarially if there is a threat."""

    def loss(images: Tensor, labels: Tensor, progress: float) -> Tensor:
        def cross_entropy(adv: Tensor) -> Tensor:
            return F.cross_entropy(net(adv), labels, reduction="none")

        if threat is not None:
            ball = threat.scaled(min(1.0, 2 * progress + 0.2))
            images = pgd_ascent(cross_entropy, images, images, ball, 3, 0.5 * ball.eps)
        return cross_entropy(images).mean()

    return train(net, loss, epochs)


@cache
def undefended(seed: int = 0, activation: type[nn.Module] = nn.ReLU, norm: bool = False) -> nn.Module:
    """Return an undefended network."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return fitted(convolutional(activation=activation, norm=norm))


@cache
def adversarially_trained(seed: int = 0) -> nn.Module:
    """Return a network trained with PGD-3 at Linf 0.1."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return fitted(convolutional(), 8, TRAIN_THREAT)


@cache
def linear() -> nn.Module:
    """Return a linear classifier."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return fitted(nn.Sequential(nn.Flatten(), nn.Linear(192, 10)))
