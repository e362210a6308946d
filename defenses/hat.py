"""HAT: TRADES plus helper examples beyond the ball, labeled by a standard model.

Paper:   Rade and Moosavi-Dezfooli, "Reducing Excessive Margin to Achieve a Better Accuracy vs. Robustness Trade-off",
         ICLR 2022.
Code:    github.com/imrahulr/hat (MIT); defaults follow the README's CIFAR-10 command without extra data.
Family:  adversarial training, 2022
Cost:    2k + 10, and 1 of the teacher
Reports: CIFAR-10, Linf 8/255, ResNet-18: 84.90 % clean, 49.08 % AutoAttack (README); PreActResNet-18 with 1M generated
         images 86.86 and 57.09 %.
Differs: SGD without Nesterov momentum, and a learning rate that changes linearly and peaks at 30 % of training; the
         code's one-cycle schedule is a cosine that peaks at 25 %. The helper model here has the student's architecture
         and is the last epoch of `standard`.
Kept:    the helper labels are the standard model's predictions on the adversarial examples, as in the code. Helper
         examples are not clamped to [0, 1].
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
    FrozenModel,
    Loss,
    PassCounts,
    Stage,
    ThreatModel,
    kl,
    train_stage,
)


@dataclass(frozen=True, kw_only=True)
class HATConfig(AdvTrainConfig):
    """Published values: 50 epochs, one-cycle learning rate up to 0.21."""

    epochs: int = 50
    lr: float = 0.21
    schedule: str = "one-cycle"
    beta: float = 2.5  # weight of the KL term
    gamma: float = 0.5  # weight of the helper term
    h: float = 2.0  # helper examples are x + h (x' - x)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("beta", self.beta >= 0, ">= 0")
        self.require("gamma", self.gamma >= 0, ">= 0")
        self.require("h", self.h >= 1, ">= 1")


@DEFENSES.register("hat")
class HAT(Defense):
    """TRADES with helper examples beyond the ball, labeled by a standard model."""

    Config = HATConfig
    version = 1
    requires = {"helper": "standard"}
    presets: ClassVar = {"quick": {"inner_steps": 5}, "quick:large": {"inner_steps": 3}}

    def stages(self, setup: DefenseSetup) -> list[Stage]:
        """Return one stage that trains on clean images, adversarial and helper examples."""
        steps = self.config.inner_steps
        passes = PassCounts(forward=steps + 4, input_grad=steps, weight_grad=3, teacher_forward=1)
        objective = HATObjective(setup.model, setup.threat, self.config, setup.required_models["helper"])
        return [train_stage(self.config, "train", objective, passes=passes)]


class HATObjective(nn.Module):
    """CE(S(x), y) + beta * KL(p_S(x) || p_S(x')) + gamma * CE(S(x + h (x' - x)), argmax helper(x'))."""

    def __init__(self, model: nn.Module, threat: ThreatModel, config: HATConfig, helper: FrozenModel) -> None:
        super().__init__()
        self.model, self.threat, self.config, self.helper = model, threat, config, helper

    def forward(self, batch: Batch) -> Loss:
        """Attack the batch and compute the loss.

        Returns:
            The loss, and metrics "clean_loss", "robust_kl" and "helper_loss" (nats), each a mean over the batch.
        """
        cfg, images, adv = self.config, batch.images, self.inner_maximization(batch)
        with torch.no_grad():
            helper_labels = self.helper(adv).argmax(1)
        clean_logits, adv_logits = self.model(images), self.model(adv)
        helper_logits = self.model(images + cfg.h * (adv - images))
        clean_loss = F.cross_entropy(clean_logits, batch.labels)
        robust_kl = kl(clean_logits, adv_logits).mean()
        helper_loss = F.cross_entropy(helper_logits, helper_labels)
        terms = {"clean_loss": clean_loss, "robust_kl": robust_kl, "helper_loss": helper_loss}
        total = clean_loss + cfg.beta * robust_kl + cfg.gamma * helper_loss
        return Loss(total, {name: value.detach() for name, value in terms.items()})

    def inner_maximization(self, batch: Batch) -> Tensor:
        """Maximize KL(p_S(x) || p_S(x')), as TRADES does."""
        return self.config.kl_ascent(self.model, batch, self.threat)
