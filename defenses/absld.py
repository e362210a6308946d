"""ABSLD: RSLAD with a temperature per class, so that classes with a high loss get sharper soft labels.

Paper:   Zhao et al., "Improving Adversarial Robust Fairness via Anti-Bias Soft Label Distillation", NeurIPS 2024,
         arXiv:2312.05508.
Code:    github.com/zhaoshiji123/ABSLD (no license: read, not copied); defaults follow its CIFAR-10 script.
Family:  distillation, 2024
Cost:    2k + 6, and 1 of the teacher
Differs: a teacher trained here is AT's last epoch; the published teacher is a WideResNet-34-10 of TRADES. On several
         devices and in micro-batches the losses of the classes are sums over all of them.
Kept:    both soft labels are divided by both temperatures: the code divides one tensor in place, under two names
         (`joint_temperatures=False` gives each term its own, as in the paper). The KL is divided by 10 (the number of
         classes of CIFAR-10). 1e-5 is added inside the logarithm of the teacher's probabilities only.
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
    lr_schedule,
    mean_over_batch,
    soft_label_kl,
    train_stage,
)


@dataclass(frozen=True, kw_only=True)
class ABSLDConfig(AdvTrainConfig):
    """Published values: 300 epochs, learning rate and temperature rate are divided by 10 after 215, 260 and 285."""

    epochs: int = 300
    weight_decay: float = 2e-4
    drops: tuple[float, ...] = (215 / 300, 260 / 300, 285 / 300)
    adv_weight: float = 5 / 6  # weight of the adversarial term; the clean term has 1 - adv_weight
    temperature_rate: float = 0.1  # largest change of a temperature after an epoch
    min_temperature: float = 0.5
    max_temperature: float = 5.0
    joint_temperatures: bool = True  # divide both soft labels by both temperatures, as in the code

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("adv_weight", 0 <= self.adv_weight <= 1, "in [0, 1]")
        self.require("temperature_rate", self.temperature_rate >= 0, ">= 0")
        self.require("min_temperature", 0 < self.min_temperature <= 1, "in (0, 1]")
        self.require("max_temperature", self.max_temperature >= 1, ">= 1")


@DEFENSES.register("absld")
class ABSLD(Defense):
    """Distillation with temperatures per class, for equal robustness of the classes."""

    Config = ABSLDConfig
    version = 1
    requires = {"robust": "at"}
    presets: ClassVar = {
        # KL / 10 is too small a loss for few epochs: ten times the learning rate, a tenth of the weight decay.
        "quick": {"inner_steps": 5, "lr": 1.0, "weight_decay": 5e-5},
        "quick:large": {"inner_steps": 3, "lr": 0.2},
    }

    def stages(self, setup: DefenseSetup) -> list[Stage]:
        """Return one stage that distills and moves the temperatures after each epoch."""
        steps = self.config.inner_steps
        passes = PassCounts(forward=steps + 2, input_grad=steps, weight_grad=2, teacher_forward=1)
        teacher = setup.required_models["robust"]
        objective = ABSLDObjective(setup.model, setup.threat, self.config, teacher, setup.num_classes)
        return [
            train_stage(self.config, "distill", objective, passes=passes, on_epoch_end=objective.update_temperatures)
        ]


class ABSLDObjective(nn.Module):
    """w * KL(p_T(x; t_adv) || p_S(x')) + (1 - w) * KL(p_T(x; t_clean) || p_S(x)), each divided by 10."""

    temperatures: Tensor
    class_losses: Tensor

    def __init__(
        self, model: nn.Module, threat: ThreatModel, config: ABSLDConfig, teacher: FrozenModel, num_classes: int
    ) -> None:
        super().__init__()
        self.model, self.threat, self.config, self.teacher = model, threat, config, teacher
        self.register_buffer("temperatures", torch.ones(2, num_classes))  # adversarial and clean term
        self.register_buffer("class_losses", torch.zeros(2, num_classes))  # sums of this epoch's cross-entropies

    def forward(self, batch: Batch) -> Loss:
        """Attack the batch, compute the loss, and add each image's cross-entropies to its class.

        Returns:
            The loss, and metrics "adv_loss" and "clean_loss", each a mean over the batch.
        """
        adv_target, clean_target = self.targets(batch)
        adv_logits = self.model(self.inner_maximization(batch, adv_target))
        clean_logits = self.model(batch.images)
        self.add_losses(adv_logits.detach(), clean_logits.detach(), batch.labels)
        adv_loss = soft_label_kl(adv_target.softmax(1), adv_logits).mean() / 10
        clean_loss = soft_label_kl(clean_target.softmax(1), clean_logits).mean() / 10
        weight = self.config.adv_weight
        total = weight * adv_loss + (1 - weight) * clean_loss
        return Loss(total, {"adv_loss": adv_loss.detach(), "clean_loss": clean_loss.detach()})

    def targets(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the teacher's logits on clean images at the temperatures of the adversarial and the clean term."""
        with torch.no_grad():
            logits = self.teacher(batch.images)
        adv_temperature, clean_temperature = self.temperatures[:, batch.labels, None]
        if self.config.joint_temperatures:
            joint = logits / adv_temperature / clean_temperature
            return joint, joint
        return logits / adv_temperature, logits / clean_temperature

    def inner_maximization(self, batch: Batch, target: Tensor) -> Tensor:
        """Maximize KL(p_T || p_S(x')) for target logits (B, K), from x + 0.001 N(0, 1)."""
        return self.config.kl_ascent(self.model, batch, self.threat, target)

    def add_losses(self, adv_logits: Tensor, clean_logits: Tensor, labels: Tensor) -> None:
        """Add the cross-entropies of the batch to the sums of their classes, over all devices."""
        losses = torch.stack([F.cross_entropy(z, labels, reduction="none") for z in (adv_logits, clean_logits)])
        sums = torch.zeros_like(self.class_losses).index_add_(1, labels, losses.to(self.class_losses.dtype))
        self.class_losses += mean_over_batch(sums / len(labels), len(labels)) * len(labels)

    def update_temperatures(self, batch: Batch) -> tuple[dict[str, float], bool]:
        """Lower the temperature of classes with a loss above the mean, raise the others; training goes on.

        Returns:
            Metrics "min_temperature" and "max_temperature" of the adversarial term, and False.
        """
        cfg = self.config
        rate = cfg.temperature_rate * lr_schedule(cfg)(batch.epoch + 1)
        gaps = self.class_losses - self.class_losses.mean(1, keepdim=True)
        largest = gaps.abs().amax(1, keepdim=True).clamp_min(torch.finfo(gaps.dtype).tiny)
        self.temperatures.sub_(rate * gaps / largest).clamp_(cfg.min_temperature, cfg.max_temperature)
        self.class_losses.zero_()
        low, high = self.temperatures[0].aminmax()
        return {"min_temperature": low.item(), "max_temperature": high.item()}, False
