"""Two certified classifiers on digits: their certified accuracy is a lower bound that no attack may undercut."""

from __future__ import annotations

import itertools
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robobench.data import load_dataset
from robobench.data.split import Split

TRAIN_EPS = 0.1  # Linf, of the interval bounds in training


def train_split() -> Split:
    """Return the training digits, 8 px."""
    train = load_dataset("digits", resolution=8).train
    assert train is not None
    return train


class IntervalNet(nn.Module):
    """An MLP trained with interval bound propagation (Gowal et al., 2018, arXiv:1810.12715), certified in Linf."""

    def __init__(self, num_classes: int = 10, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.Linear(192, width), nn.Linear(width, width), nn.Linear(width, num_classes)]  # 8 px, 3 channels
        )

    def bounds(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Propagate bounds of the images (B, 192) to bounds of the logits (B, K)."""
        center, radius = (low + high) / 2, (high - low) / 2
        for number, layer in enumerate(self.layers):
            if number:
                low, high = (center - radius).relu(), (center + radius).relu()
                center, radius = (low + high) / 2, (high - low) / 2
            center, radius = layer(center), radius @ layer.weight.abs().T
        return center - radius, center + radius

    def forward(self, images: Tensor) -> Tensor:
        x = images.flatten(1)
        for number, layer in enumerate(self.layers):
            x = layer(x.relu() if number else x)
        return x

    def worst_logits(self, images: Tensor, labels: Tensor, eps: float) -> Tensor:
        """Return logits (B, K) with the lower bound of the true class and upper bounds of the others, in Linf `eps`."""
        flat = images.flatten(1)
        low, high = self.bounds((flat - eps).clamp(0, 1), (flat + eps).clamp(0, 1))
        return torch.where(F.one_hot(labels, low.shape[1]).bool(), low, high)


class LipschitzNet(nn.Module):
    """An MLP of almost orthogonal layers and MaxMin: 1-Lipschitz in L2.

    Layers: Prach and Lampert, ECCV 2022, arXiv:2208.03160. MaxMin: Anil et al., ICML 2019, arXiv:1811.05381.
    """

    def __init__(self, num_classes: int = 10, width: int = 64) -> None:
        super().__init__()
        sizes = (192, width, width, num_classes)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        for layer in self.layers:
            nn.init.orthogonal_(layer.weight)

    def forward(self, images: Tensor) -> Tensor:
        x = images.flatten(1)
        for number, layer in enumerate(self.layers):
            if number:  # sort pairs
                pairs = x.unflatten(1, (-1, 2))
                x = torch.cat((pairs.amax(2), pairs.amin(2)), 1)
            scale = (layer.weight.T @ layer.weight).abs().sum(1).clamp_min(1e-12).rsqrt()
            x = F.linear(x * scale, layer.weight, layer.bias)
        return x


def train(net: nn.Module, loss: object, epochs: int) -> nn.Module:
    """Train on the digits with Adam; `loss` maps images, labels and progress in [0, 1] to a scalar."""
    split = train_split()
    images, labels = split.images(torch.arange(len(split))), split.labels
    optimizer = torch.optim.Adam(net.parameters(), lr=4e-3)
    for epoch in range(epochs):
        for rows in torch.randperm(len(labels)).split(96):
            optimizer.zero_grad()
            loss(images[rows], labels[rows], epoch / epochs).backward()  # type: ignore[operator]
            optimizer.step()
    return net.eval().requires_grad_(False)


@cache
def interval_net() -> IntervalNet:
    """Return the trained IntervalNet."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = IntervalNet()

        def loss(images: Tensor, labels: Tensor, progress: float) -> Tensor:
            share = min(1.0, 2 * progress)
            worst = net.worst_logits(images, labels, TRAIN_EPS * share)
            clean = F.cross_entropy(net(images), labels)
            return (1 - share / 2) * clean + share / 2 * F.cross_entropy(worst, labels)

        train(net, loss, 20)
    return net


@cache
def lipschitz_net() -> LipschitzNet:
    """Return the trained LipschitzNet."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = LipschitzNet()

        def loss(images: Tensor, labels: Tensor, progress: float) -> Tensor:
            return F.multi_margin_loss(net(images), labels, margin=1.5)  # a margin of sqrt(2) radius

        train(net, loss, 15)
    return net


def certified(net: nn.Module, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    """Return which images no perturbation of radius `eps` changes: Linf for IntervalNet, L2 for LipschitzNet."""
    if isinstance(net, IntervalNet):
        return net.worst_logits(images, labels, eps).argmax(1) == labels
    top = net(images).topk(2, 1)
    # The difference of two logits of a 1-Lipschitz map changes by at most sqrt(2) eps.
    return (top.indices[:, 0] == labels) & (top.values[:, 0] - top.values[:, 1] > 2**0.5 * eps)


def interval(num_classes: int) -> nn.Module:
    """Factory of the IntervalNet, for images of any size."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(8), interval_net())


def lipschitz(num_classes: int) -> nn.Module:
    """Factory of the LipschitzNet, for images of any size."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(8), lipschitz_net())
