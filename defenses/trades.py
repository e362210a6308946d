"""TRADES: clean cross-entropy plus a KL term between the predictions on clean images and adversarial examples.

Paper:   Zhang et al., "Theoretically Principled Trade-off between Robustness and Accuracy", ICML 2019,
         arXiv:1901.08573.
Code:    github.com/yaodongyu/TRADES; defaults follow its train_trades_cifar10.py.
Family:  adversarial training, 2019
Cost:    2k + 7
Differs: the step size is 0.25 eps; the code has 0.007 / 0.031 (0.226 eps). The attack computes the clean
         predictions once; the code computes them in every step (equal in eval mode). The outer loss computes the
         clean logits once, the code twice: two BatchNorm updates per step here, three there. In L2 the step size is
         0.25 eps too; the code uses 2 eps / K, and a random direction where the gradient is zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robobench.api import (
    DEFENSES,
    AdvTrainConfig,
    Batch,
    Defense,
    DefenseSetup,
    Loss,
    PassCounts,
    Stage,
    ThreatModel,
    kl,
    train_stage,
)


@dataclass(frozen=True, kw_only=True)
class TradesConfig(AdvTrainConfig):
    """Published values: 76 epochs, the learning rate is divided by 10 in epochs 75 and 76 (counted from 1)."""

    epochs: int = 76
    weight_decay: float = 2e-4
    drops: tuple[float, ...] = (74 / 76,)
    beta: float = 6.0  # weight of the robust term; 1/lambda in the paper

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("beta", self.beta >= 0, ">= 0")


@DEFENSES.register("trades")
class Trades(Defense):
    """Clean cross-entropy plus beta times KL(clean predictions || adversarial predictions)."""

    Config = TradesConfig
    version = 1
    presets: ClassVar = {"quick": {"inner_steps": 5}, "quick:large": {"inner_steps": 3}}

    def stages(self, setup: DefenseSetup) -> list[Stage]:
        """Return one stage that trains on clean images and adversarial examples."""
        steps = self.config.inner_steps
        passes = PassCounts(forward=steps + 3, input_grad=steps, weight_grad=2)
        objective = TradesObjective(setup.model, setup.threat, self.config)
        return [train_stage(self.config, "train", objective, passes=passes)]


class TradesObjective(nn.Module):
    """CE(S(x), y) + beta * KL(p_S(x) || p_S(x')). The gradient flows into both sides of the KL."""

    def __init__(self, model: nn.Module, threat: ThreatModel, config: TradesConfig) -> None:
        super().__init__()
        self.model, self.threat, self.config = model, threat, config

    def forward(self, batch: Batch) -> Loss:
        """Attack the batch and compute the loss.

        Returns:
            The loss, and metrics "clean_loss" and "robust_kl" (nats), each a mean over the batch.
        """
        adv = self.inner_maximization(batch)
        clean_logits = self.model(batch.images)
        clean_loss = F.cross_entropy(clean_logits, batch.labels)
        robust_kl = kl(clean_logits, self.model(adv)).mean()
        total = clean_loss + self.config.beta * robust_kl
        return Loss(total, {"clean_loss": clean_loss.detach(), "robust_kl": robust_kl.detach()})

    def inner_maximization(self, batch: Batch) -> Tensor:
        """Maximize KL(p_S(x) || p_S(x')). The start is x + 0.001 N(0, 1), since the gradient at x itself is zero."""
        cfg, threat, images = self.config, self.config.threat_at_epoch(self.threat, batch.epoch), batch.images
        start = images + 0.001 * batch.rng.child("start").normal_like(images)  # not clamped, as in the code
        with cfg.inner_attack_mode(self.model):
            with torch.no_grad():
                clean_logits = self.model(images)

            def objective(adv: Tensor) -> Tensor:
                return kl(clean_logits, self.model(adv))

            return cfg.pgd_ascent(objective, start, images, threat)
