"""MTARD: a robust teacher for adversarial examples, a clean teacher for clean images, and self-balancing weights.

Paper:   Zhao et al., "Enhanced Accuracy and Robustness via Multi-Teacher Adversarial Distillation",
         ECCV 2022.
Code:    github.com/zhaoshiji123/MTARD (no license: read, not copied); defaults follow its CIFAR-10 script.
Family:  distillation, 2022
Cost:    2k + 6, and 2 of the teachers
Differs: with a schedule other than "step", eta is multiplied by the schedule's factor too. Teachers trained here are
         their last epochs.
Kept:    the initial losses L(0) are those of the first mini-batch, although this noise affects the whole run. They
         and the weights are buffers here, so that checkpoints include them. The KL is divided by 10 (the number of
         classes of CIFAR-10; on CIFAR-100 the code divides by 100 and multiplies by 10). 1e-5 is added inside the
         logarithm of the teacher's probabilities only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
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
    train_stage,
)


@dataclass(frozen=True, kw_only=True)
class MTARDConfig(AdvTrainConfig):
    """Published values: 300 epochs, learning rate and eta are divided by 10 after epochs 215, 260 and 285."""

    epochs: int = 300
    weight_decay: float = 2e-4
    drops: tuple[float, ...] = (215 / 300, 260 / 300, 285 / 300)
    eta: float = 0.025  # learning rate of the two weights
    beta: float = 1.0  # exponent of the relative loss (L(t) / L(0)) ** beta

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("eta", 0 <= self.eta <= 1, "in [0, 1]")
        self.require("beta", self.beta >= 0, ">= 0")


@DEFENSES.register("mtard")
class MTARD(Defense):
    """Distillation from a robust and a clean teacher, with self-balancing weights."""

    Config = MTARDConfig
    version = 1
    requires = {"robust": "at", "clean": "standard"}
    presets: ClassVar = {
        # KL / 10 is too small a loss for few epochs: ten times the learning rate, a tenth of the weight decay.
        "quick": {"inner_steps": 5, "lr": 1.0, "weight_decay": 5e-5},
        "quick:large": {"inner_steps": 3, "lr": 0.2},
    }

    def stages(self, setup: DefenseSetup) -> list[Stage]:
        """Return one stage that distills from both teachers."""
        steps = self.config.inner_steps
        passes = PassCounts(forward=steps + 2, input_grad=steps, weight_grad=2, teacher_forward=2)
        objective = MTARDObjective(setup.model, setup.threat, self.config, setup.required_models)
        # The weights are updated once per step, from the losses of the whole batch.
        return [train_stage(self.config, "distill", objective, passes=passes, whole_batch=True)]


class MTARDObjective(nn.Module):
    """w_adv * L_adv + w_nat * L_nat. The weights and the initial losses are buffers without gradient."""

    weights: Tensor
    first_losses: Tensor

    def __init__(
        self, model: nn.Module, threat: ThreatModel, config: MTARDConfig, teachers: Mapping[str, FrozenModel]
    ) -> None:
        super().__init__()
        self.model, self.threat, self.config = model, threat, config
        self.robust, self.clean = teachers["robust"], teachers["clean"]
        self.lr_factor = lr_schedule(config)
        self.register_buffer("weights", torch.tensor([0.5, 0.5]))  # of L_adv, L_nat
        self.register_buffer("first_losses", torch.full((2,), math.nan))  # L(0); NaN before the first mini-batch

    def forward(self, batch: Batch) -> Loss:
        """Attack the batch, compute both losses, update the weights, and return the weighted sum.

        Returns:
            The loss, and metrics "adv_loss", "clean_loss" and "adv_weight".
        """
        adv = self.inner_maximization(batch)
        with torch.no_grad():
            adv_target, clean_target = self.robust(adv).softmax(1), self.clean(batch.images).softmax(1)
        adv_loss = distillation(adv_target, self.model(adv))
        clean_loss = distillation(clean_target, self.model(batch.images))
        losses = torch.stack((adv_loss, clean_loss))
        self.balance(mean_over_batch(losses, len(batch.index)), batch.epoch)  # over all devices
        metrics = {"adv_loss": adv_loss.detach(), "clean_loss": clean_loss.detach()}
        # A copy, since the buffer is updated in place and accumulated micro-batches share it.
        weights = self.weights.clone()
        return Loss((weights * losses).sum(), {**metrics, "adv_weight": weights[0]})

    def balance(self, losses: Tensor, epoch: int) -> None:
        """Move each weight toward the share of its relative loss r, so that the loss that decreased less gets more."""
        eta = self.config.eta * self.lr_factor(epoch)
        self.first_losses.copy_(torch.where(self.first_losses.isnan(), losses, self.first_losses))
        r = (losses / self.first_losses) ** self.config.beta
        self.weights.lerp_(r / r.sum(), eta)

    def inner_maximization(self, batch: Batch) -> Tensor:
        """Maximize the student's cross-entropy, without a teacher. The start is x + 0.001 N(0, 1)."""
        cfg, threat, images = self.config, self.config.threat_at_epoch(self.threat, batch.epoch), batch.images

        def objective(adv: Tensor) -> Tensor:
            return F.cross_entropy(self.model(adv), batch.labels, reduction="none")

        start = images + 0.001 * batch.rng.child("start").normal_like(images)  # not clamped, as in the code
        with cfg.inner_attack_mode(self.model):
            return cfg.pgd_ascent(objective, start, images, threat)


def distillation(target: Tensor, logits: Tensor) -> Tensor:
    """Compute sum_k p_T (log(p_T + 1e-5) - log p_S) / 10, a mean over images: probs and logits (B, K) -> scalar."""
    return (target * ((target + 1e-5).log() - F.log_softmax(logits, dim=1))).sum(1).mean() / 10
