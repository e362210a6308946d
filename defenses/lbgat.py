"""LBGAT: the logits on adversarial examples follow those of a clean guide model that is trained beside.

Paper:   Cui et al., "Learnable Boundary Guided Adversarial Training", ICCV 2021, arXiv:2011.11164.
Code:    github.com/dvlab-research/LBGAT (MIT); defaults follow its script with beta 0 (LBGAT0).
Family:  adversarial training, 2021
Cost:    2k + 7
Reports: CIFAR-10, Linf 0.031, WideResNet-34-10: 88.22 % clean, 52.86 % AutoAttack (RobustBench,
         Cui2020Learnable_34_10).
Differs: the guide has the student's architecture and initial weights; the code's is a ResNet-18. With beta = 0 no
         forward pass is made for the KL term; the code makes it, which changes BatchNorm's running statistics. The
         attack computes the clean predictions once, the code in every step (equal in eval mode). The first epoch has
         the full learning rate, the code's a fifth. The step size is 0.25 eps; the code has 0.007 / 0.031.
Kept:    the gradient of the squared distance flows into both models. The distance is a mean over images and classes.
"""

from __future__ import annotations

import copy
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
    kl,
    train_stage,
)


@dataclass(frozen=True, kw_only=True)
class LBGATConfig(AdvTrainConfig):
    """Published values: 100 epochs, the learning rate is divided by 10 in epochs 76 and 91 (counted from 1)."""

    epochs: int = 100
    weight_decay: float = 2e-4
    drops: tuple[float, ...] = (0.75, 0.9)
    beta: float = 0.0  # weight of TRADES' KL term; 0 in LBGAT0, 6 in LBGAT6

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("beta", self.beta >= 0, ">= 0")


@DEFENSES.register("lbgat")
class LBGAT(Defense):
    """Adversarial training guided by the logits of a clean model trained beside."""

    Config = LBGATConfig
    version = 1
    presets: ClassVar = {"quick": {"inner_steps": 5}, "quick:large": {"inner_steps": 3}}

    def stages(self, setup: DefenseSetup) -> list[Stage]:
        """Return one stage that trains model and guide; passes of both are counted."""
        steps, kl_term = self.config.inner_steps, self.config.beta > 0
        passes = PassCounts(forward=steps + 3 + kl_term, input_grad=steps, weight_grad=2 + kl_term)
        objective = LBGATObjective(setup.model, setup.threat, self.config)
        return [train_stage(self.config, "train", objective, passes=passes)]


class LBGATObjective(nn.Module):
    """MSE(S(x'), G(x)) + CE(G(x), y) + beta * KL(p_S(x) || p_S(x')), with a guide G that is trained too."""

    def __init__(self, model: nn.Module, threat: ThreatModel, config: LBGATConfig) -> None:
        super().__init__()
        self.model, self.threat, self.config = model, threat, config
        self.guide = copy.deepcopy(model)

    def forward(self, batch: Batch) -> Loss:
        """Attack the batch and compute the loss.

        Returns:
            The loss, and metrics "guide_distance", "guide_loss" and, with beta > 0, "robust_kl".
        """
        adv_logits = self.model(self.inner_maximization(batch))
        if self.config.beta:
            robust_kl = kl(self.model(batch.images), adv_logits).mean()
        guide_logits = self.guide(batch.images)
        distance, guide_loss = F.mse_loss(adv_logits, guide_logits), F.cross_entropy(guide_logits, batch.labels)
        total, metrics = distance + guide_loss, {"guide_distance": distance.detach(), "guide_loss": guide_loss.detach()}
        if self.config.beta:
            total, metrics = total + self.config.beta * robust_kl, {**metrics, "robust_kl": robust_kl.detach()}
        return Loss(total, metrics)

    def inner_maximization(self, batch: Batch) -> Tensor:
        """Maximize KL(p_S(x) || p_S(x')), as TRADES does; the guide takes no part."""
        return self.config.kl_ascent(self.model, batch, self.threat)
