"""LARS, the optimizer of contrastive pre-training with large batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from robobench.training.config import TrainConfig


class LARS(torch.optim.SGD):
    """SGD with layer-wise adaptive rates: each gradient, weight decay included, is scaled to `trust` * parameter norm.

    Source: You, Gitman and Ginsburg, "Large Batch Training of Convolutional Networks", 2017, arXiv:1708.03888.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float,
        momentum: float,
        decay: float,
        trust: float = 0.001,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(params, lr=lr, momentum=momentum)
        self.decay, self.trust, self.eps = decay, trust, eps

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Scale all gradients in place, then take an SGD step."""
        for p in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
            norm, grad_norm = p.norm(), p.grad.norm()
            rate = self.trust * norm / (grad_norm + self.decay * norm + self.eps)
            rate = torch.where((norm > 0) & (grad_norm > 0), rate, 1.0)
            p.grad.add_(p, alpha=self.decay).mul_(rate)
        return super().step(closure)


def lars(config: TrainConfig) -> Callable[[nn.Module], torch.optim.Optimizer]:
    """Return a function that makes LARS with the config's learning rate, momentum and weight decay for a module."""

    def build(objective: nn.Module) -> torch.optim.Optimizer:
        parameters = [p for p in objective.parameters() if p.requires_grad]
        return LARS(parameters, config.lr, config.momentum, config.weight_decay)

    return build
