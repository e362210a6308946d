"""ARD: the student's adversarial predictions match a robust teacher's clean predictions at a high temperature.

Paper:   Goldblum et al., "Adversarially Robust Distillation", AAAI 2020, arXiv:1905.09747.
Code:    github.com/goldblum/AdversariallyRobustDistillation (MIT); defaults follow its main.py.
Family:  distillation, 2020
Cost:    2k + 3, and 1 of the teacher
Differs: with alpha = 1 the cross-entropy has weight 0, and no forward pass is made for it; the code makes it, which
         changes BatchNorm's running statistics. A teacher trained here is AT's last epoch.
Kept:    the KL is a mean over images and classes (KL / K). The start is not clamped to [0, 1], and the model is
         attacked in train mode. The learning rate is divided once, at epoch 100: the code's drop at epoch 150 sets
         the same value again.
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
class ARDConfig(AdvTrainConfig):
    """Published values: 200 epochs, the learning rate is divided by 10 at epoch 100."""

    weight_decay: float = 2e-4
    drops: tuple[float, ...] = (0.5,)
    alpha: float = 1.0  # weight of distillation; clean cross-entropy has 1 - alpha
    temperature: float = 30.0  # tau
    attack_bn_mode: str = "train"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("alpha", 0 <= self.alpha <= 1, "in [0, 1]")
        self.require("temperature", self.temperature > 0, "> 0")


@DEFENSES.register("ard")
class ARD(Defense):
    """Distillation of a robust teacher's clean predictions at temperature 30."""

    Config = ARDConfig
    version = 1
    requires = {"robust": "at"}
    presets: ClassVar = {
        # KL / K is too small a loss for few epochs: ten times the learning rate, a tenth of the weight decay.
        "quick": {"inner_steps": 5, "lr": 1.0, "weight_decay": 5e-5},
        "quick:large": {"inner_steps": 3, "lr": 0.2},
    }

    def stages(self, setup: DefenseSetup) -> list[Stage]:
        """Return one stage that distills on adversarial examples."""
        steps, clean_term = self.config.inner_steps, self.config.alpha < 1
        passes = PassCounts(
            forward=steps + 1 + clean_term, input_grad=steps, weight_grad=1 + clean_term, teacher_forward=1
        )
        objective = ARDObjective(setup.model, setup.threat, self.config, setup.required_models["robust"])
        return [train_stage(self.config, "distill", objective, passes=passes)]


class ARDObjective(nn.Module):
    """alpha * tau^2 * KL(p_T(x) || p_S(x')) / K at temperature tau, plus (1 - alpha) * CE(S(x), y)."""

    def __init__(self, model: nn.Module, threat: ThreatModel, config: ARDConfig, teacher: FrozenModel) -> None:
        super().__init__()
        self.model, self.threat, self.config, self.teacher = model, threat, config, teacher

    def forward(self, batch: Batch) -> Loss:
        """Attack the batch and compute the loss.

        Returns:
            The loss, and metrics "distillation_kl" (nats, at temperature tau) and, with alpha < 1, "clean_loss".
        """
        cfg, adv = self.config, self.inner_maximization(batch)
        with torch.no_grad():
            target = self.teacher(batch.images)
        distance = kl(target / cfg.temperature, self.model(adv) / cfg.temperature).mean()
        total, metrics = (
            cfg.alpha * cfg.temperature**2 * distance / target.shape[1],
            {"distillation_kl": distance.detach()},
        )
        if cfg.alpha < 1:
            clean_loss = F.cross_entropy(self.model(batch.images), batch.labels)
            total, metrics = total + (1 - cfg.alpha) * clean_loss, {**metrics, "clean_loss": clean_loss.detach()}
        return Loss(total, metrics)

    def inner_maximization(self, batch: Batch) -> Tensor:
        """Maximize the student's cross-entropy. The Linf start is uniform in the ball and not clamped to [0, 1]."""
        cfg, threat, images = self.config, self.config.threat_at_epoch(self.threat, batch.epoch), batch.images
        rng = batch.rng.child("start")

        def objective(adv: Tensor) -> Tensor:
            return F.cross_entropy(self.model(adv), batch.labels, reduction="none")

        if threat.norm == "Linf":
            start = images + threat.eps * (2 * rng.uniform_like(images) - 1)
        else:
            start = threat.random_start(images, rng)
        with cfg.inner_attack_mode(self.model):
            return cfg.pgd_ascent(objective, start, images, threat)
