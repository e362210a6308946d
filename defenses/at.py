"""Adversarial training: cross-entropy on adversarial examples that PGD makes in every training step.

Paper:   Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018,
         arXiv:1706.06083.
Code:    github.com/MadryLab/cifar10_challenge; the defaults follow the modern settings of
         github.com/locuslab/robust_overfitting (200 epochs, weight decay 5e-4 on every parameter).
Family:  adversarial training, 2018
Cost:    2k + 3
Differs: the model is attacked in eval mode (as in MAIR and "Bag of Tricks for AT", ICLR 2021), so that only the
         update steps change BatchNorm's running statistics. Both codes above attack in train mode; use
         `attack_bn_mode="train"` for that. The crop pads 4 pixels; Madry's code pads 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

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
    train_stage,
)


@dataclass(frozen=True, kw_only=True)
class ATConfig(AdvTrainConfig):
    """Published values: 200 epochs, the learning rate is divided by 10 at epochs 100 and 150."""


@DEFENSES.register("at")
class AT(Defense):
    """PGD adversarial training."""

    Config = ATConfig
    version = 1
    presets: ClassVar = {"quick": {"inner_steps": 5}, "quick:large": {"inner_steps": 3}}

    def stages(self, setup: DefenseSetup) -> list[Stage]:
        """Return one stage that trains on adversarial examples only."""
        steps = self.config.inner_steps
        passes = PassCounts(forward=steps + 1, input_grad=steps, weight_grad=1)
        objective = ATObjective(setup.model, setup.threat, self.config)
        return [train_stage(self.config, "train", objective, passes=passes)]


class ATObjective(nn.Module):
    """Mean cross-entropy on adversarial examples."""

    def __init__(self, model: nn.Module, threat: ThreatModel, config: ATConfig) -> None:
        super().__init__()
        self.model, self.threat, self.config = model, threat, config

    def forward(self, batch: Batch) -> Loss:
        """Attack the batch and compute the loss."""
        adv = self.inner_maximization(batch)
        return Loss(F.cross_entropy(self.model(adv), batch.labels))

    def inner_maximization(self, batch: Batch) -> Tensor:
        """Maximize the cross-entropy with PGD from a uniform random start in the ball, clamped to [0, 1]."""
        cfg, threat = self.config, self.config.threat_at_epoch(self.threat, batch.epoch)

        def objective(adv: Tensor) -> Tensor:
            return F.cross_entropy(self.model(adv), batch.labels, reduction="none")

        start = threat.random_start(batch.images, batch.rng.child("start"))
        with cfg.inner_attack_mode(self.model):
            return cfg.pgd_ascent(objective, start, batch.images, threat)
