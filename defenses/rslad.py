"""RSLAD: a robust teacher's soft labels replace the hard labels in every term, the attack included.

Paper:   Zi et al., "Revisiting Adversarial Robustness Distillation: Robust Soft Labels Make Student Better",
         ICCV 2021, arXiv:2108.07969.
Code:    github.com/zibojia/RSLAD (MIT); defaults follow its CIFAR-10 script.
Family:  distillation, 2021
Cost:    2k + 6, and 1 of the teacher
Differs: a teacher trained here is AT's last epoch; the published teacher is a WideResNet-34-10 of TRADES.
Kept:    the KL is divided by 10 (the number of classes of CIFAR-10; on CIFAR-100 the code divides by 100 and
         multiplies by 10). 1e-5 is added inside the logarithm of the teacher's probabilities only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from robobench.api import (
    DEFENSES,
    AdvTrainConfig,
    Batch,
    Defense,
    DefenseSetup,
    FrozenModel,
    Loss,
    PassCounts,
    Stage,
    ThreatModel,
    soft_label_kl,
    train_stage,
)


@dataclass(frozen=True, kw_only=True)
class RSLADConfig(AdvTrainConfig):
    """Published values: 300 epochs, the learning rate is divided by 10 after epochs 215, 260 and 285."""

    epochs: int = 300
    weight_decay: float = 2e-4
    drops: tuple[float, ...] = (215 / 300, 260 / 300, 285 / 300)
    adv_weight: float = 5 / 6  # weight of the adversarial term; the clean term has 1 - adv_weight

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("adv_weight", 0 <= self.adv_weight <= 1, "in [0, 1]")


@DEFENSES.register("rslad")
class RSLAD(Defense):
    """Distillation of a robust teacher's soft labels, in the attack and in the loss."""

    Config = RSLADConfig
    version = 1
    requires = {"robust": "at"}
    presets: ClassVar = {
        # KL / 10 is too small a loss for few epochs: ten times the learning rate, a tenth of the weight decay.
        "quick": {"inner_steps": 5, "lr": 1.0, "weight_decay": 5e-5},
        "quick:large": {"inner_steps": 3, "lr": 0.2},
    }

    def stages(self, setup: DefenseSetup) -> list[Stage]:
        """Return one stage that distills on clean images and adversarial examples."""
        steps = self.config.inner_steps
        passes = PassCounts(forward=steps + 2, input_grad=steps, weight_grad=2, teacher_forward=1)
        objective = RSLADObjective(setup.model, setup.threat, self.config, setup.required_models["robust"])
        return [train_stage(self.config, "distill", objective, passes=passes)]


class RSLADObjective(nn.Module):
    """w * KL(p_T(x) || p_S(x')) + (1 - w) * KL(p_T(x) || p_S(x)), each divided by 10."""

    def __init__(self, model: nn.Module, threat: ThreatModel, config: RSLADConfig, teacher: FrozenModel) -> None:
        super().__init__()
        self.model, self.threat, self.config, self.teacher = model, threat, config, teacher

    def forward(self, batch: Batch) -> Loss:
        """Attack the batch and compute the loss.

        Returns:
            The loss, and metrics "adv_loss" and "clean_loss", each a mean over the batch.
        """
        with torch.no_grad():
            target = self.teacher(batch.images)
        adv, soft_labels = self.inner_maximization(batch, target), target.softmax(1)
        adv_loss = soft_label_kl(soft_labels, self.model(adv)).mean() / 10
        clean_loss = soft_label_kl(soft_labels, self.model(batch.images)).mean() / 10
        weight = self.config.adv_weight
        total = weight * adv_loss + (1 - weight) * clean_loss
        return Loss(total, {"adv_loss": adv_loss.detach(), "clean_loss": clean_loss.detach()})

    def inner_maximization(self, batch: Batch, target: Tensor) -> Tensor:
        """Maximize KL(p_T(x) || p_S(x')) for the teacher's logits (B, K) on clean images, from x + 0.001 N(0, 1)."""
        return self.config.kl_ascent(self.model, batch, self.threat, target)
