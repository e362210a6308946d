"""MTARD: a robust teacher for attacked images, a clean one for clean images, and weights that balance them.

Paper:   Zhao et al., "Enhanced Accuracy and Robustness via Multi-Teacher Adversarial Distillation",
         ECCV 2022.
Code:    github.com/zhaoshiji123/MTARD (no license: read, not copied); defaults follow its CIFAR-10 script.
Differs: with a schedule other than "step", eta follows the learning rate's factor as it does there. Teachers
         trained here are their last epochs.
Kept:    the first losses are those of the very first mini-batch, seed noise that shapes the whole run; here
         they and the weights are buffers, so that a checkpoint carries them. The KL is divided by 10 (by the
         number of classes on CIFAR-10; on CIFAR-100 the code divides by 100 and multiplies by 10), and 1e-5 is
         added inside the logarithm of the teacher's probabilities only.
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
    """Published values: 300 epochs, learning rate and eta fall tenfold after epochs 215, 260 and 285."""

    epochs: int = 300
    weight_decay: float = 2e-4
    drops: tuple[float, ...] = (215 / 300, 260 / 300, 285 / 300)
    eta: float = 0.025  # how fast the weights of the two losses move
    beta: float = 1.0  # r = (loss / first loss) ** beta

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("eta", 0 <= self.eta <= 1, "in [0, 1]")
        self.require("beta", self.beta >= 0, ">= 0")


@DEFENSES.register("mtard")
class MTARD(Defense):
    """Distillation from a robust and a clean teacher with self-balancing weights."""

    Config = MTARDConfig
    version = 1
    requires = {"robust": "at", "clean": "standard"}
    presets: ClassVar = {
        # KL / 10 is too small a loss for few epochs: ten times the rate, a tenth of the weight decay.
        "quick": {"inner_steps": 5, "lr": 1.0, "weight_decay": 5e-5},
        "quick:large": {"inner_steps": 3, "lr": 0.2},
    }

    def stages(self, setup: DefenseSetup) -> list[Stage]:
        """One stage: attack, then distill from both teachers."""
        steps = self.config.inner_steps
        passes = PassCounts(forward=steps + 2, input_grad=steps, weight_grad=2, teacher_forward=2)
        objective = MTARDObjective(setup.model, setup.threat, self.config, setup.required_models)
        # The weights move once a step, by the losses of the whole batch.
        return [train_stage(self.config, "distill", objective, passes=passes, whole_batch=True)]


class MTARDObjective(nn.Module):
    """w_adv L_adv + w_nat L_nat; the weights and the first losses are buffers, without gradient."""

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
        self.register_buffer("first_losses", torch.full((2,), math.nan))  # NaN until the first mini-batch

    def forward(self, batch: Batch) -> Loss:
        """Attack the batch, compute both losses, move the weights, and weigh."""
        adv = self.inner_maximization(batch)
        with torch.no_grad():
            adv_target, clean_target = self.robust(adv).softmax(1), self.clean(batch.images).softmax(1)
        adv_loss = distillation(adv_target, self.model(adv))
        clean_loss = distillation(clean_target, self.model(batch.images))
        losses = torch.stack((adv_loss, clean_loss))
        self.balance(
            mean_over_batch(losses, len(batch.index)), batch.epoch
        )  # of the whole batch, on several devices too
        metrics = {"adv_loss": adv_loss.detach(), "clean_loss": clean_loss.detach()}
        # A copy: the buffer moves in place, and accumulated micro-batches share it.
        weights = self.weights.clone()
        return Loss((weights * losses).sum(), {**metrics, "adv_weight": weights[0]})

    def balance(self, losses: Tensor, epoch: int) -> None:
        """Move each weight towards the share of its relative loss r: what has fallen less gets more."""
        eta = self.config.eta * self.lr_factor(epoch)
        self.first_losses.copy_(torch.where(self.first_losses.isnan(), losses, self.first_losses))
        r = (losses / self.first_losses) ** self.config.beta
        self.weights.lerp_(r / r.sum(), eta)

    def inner_maximization(self, batch: Batch) -> Tensor:
        """Maximize the student's cross-entropy from 0.001 N(0, 1) beside the image; no teacher is asked."""
        cfg, threat, images = self.config, self.config.threat_at_epoch(self.threat, batch.epoch), batch.images

        def objective(adv: Tensor) -> Tensor:
            return F.cross_entropy(self.model(adv), batch.labels, reduction="none")

        start = images + 0.001 * batch.rng.child("start").normal_like(images)  # not clamped, as the code
        with cfg.inner_attack_mode(self.model):
            return cfg.pgd_ascent(objective, start, images, threat)


def distillation(target: Tensor, logits: Tensor) -> Tensor:
    """Mean over images of sum_k p_T (log(p_T + 1e-5) - log p_S) / 10, a scalar."""
    return (target * ((target + 1e-5).log() - F.log_softmax(logits, dim=1))).sum(1).mean() / 10
