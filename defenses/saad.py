"""SAAD: distillation weighted per image by the teacher's entropy, so that transferable examples count more.

Paper:   Lee and Chung, "Sample-wise Adaptive Weighting for Transfer Consistency in Adversarial Distillation",
         TMLR 2026, arXiv:2512.10275.
Code:    github.com/HongsinLee/saad (no license: read, not copied); defaults follow its main.sh (CIFAR-10).
Family:  distillation, 2026
Cost:    2k + 6, and 4 of the teacher
Differs: without the averaged weights (SWA) of the code. With beta = 0 the clean term has weight 0, and no forward pass
         is made for it; the code makes it, which changes BatchNorm's running statistics. The teacher's clean logits
         are computed once, twice in the code. A teacher trained here is AT's last epoch.
Kept:    x - delta is not clamped to [0, 1]. The weights' minimum and maximum are those of the batch. 5 multiplies the
         entropy.
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
    gather_batch,
    kl,
    train_stage,
)

ENTROPY_SCALE = 5.0


@dataclass(frozen=True, kw_only=True)
class SAADConfig(AdvTrainConfig):
    """Published values: 200 epochs, the learning rate is divided by 10 at epochs 100 and 150."""

    weight_decay: float = 2e-4
    gradient_weight: float = 1.0  # of IGDM's term in the last epoch; 10 on CIFAR-100
    beta: float = 0.0  # weight of the clean term
    gamma: float = 1.0  # order of Renyi's entropy; 1 is Shannon's
    linear_correction: float = 1.0  # share of the teacher's linearized change in the attack; lambda in the code

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("gradient_weight", self.gradient_weight >= 0, ">= 0")
        self.require("beta", self.beta >= 0, ">= 0")
        self.require("gamma", self.gamma > 0, "> 0")


@DEFENSES.register("saad")
class SAAD(Defense):
    """Distillation with gradient matching, weighted per image by the teacher's entropy."""

    Config = SAADConfig
    version = 1
    requires = {"robust": "at"}
    presets: ClassVar = {
        # A teacher that is certain gives weights near 0, which grow while the student learns: add the clean term.
        "quick": {"inner_steps": 5, "beta": 5.0},
        "quick:large": {"inner_steps": 3},
    }

    def stages(self, setup: DefenseSetup) -> list[Stage]:
        """Return one stage that distills on both sides of the images."""
        steps, clean_term = self.config.inner_steps, self.config.beta > 0
        passes = PassCounts(
            forward=steps + 2 + clean_term,
            input_grad=steps,
            weight_grad=2 + clean_term,
            teacher_forward=3,
            teacher_input_grad=1,
        )
        objective = SAADObjective(setup.model, setup.threat, self.config, setup.required_models["robust"])
        return [train_stage(self.config, "distill", objective, passes=passes, whole_batch=True)]


class SAADObjective(nn.Module):
    """w * (KL at x' + a * e / E * KL of the differences) + beta * (1 - w01) * KL at x; w grows with T's entropy."""

    def __init__(self, model: nn.Module, threat: ThreatModel, config: SAADConfig, teacher: FrozenModel) -> None:
        super().__init__()
        self.model, self.threat, self.config, self.teacher = model, threat, config, teacher

    def forward(self, batch: Batch) -> Loss:
        """Attack the batch and compute the loss. The teacher's targets are detached.

        Returns:
            The loss, and metrics "weight", "adv_kl" and "difference_kl" (nats), each a mean over the batch.
        """
        cfg, images = self.config, batch.images
        clean_target, gradient = self.teacher_gradient(batch)
        adv = self.attack(batch, clean_target, gradient)
        mirrored = images - (adv - images)
        with torch.no_grad():
            adv_target, mirrored_target = self.teacher(adv), self.teacher(mirrored)
        adv_logits, mirrored_logits = self.model(adv), self.model(mirrored)
        adv_kl = kl(adv_target, adv_logits)
        difference_kl = kl(adv_target - mirrored_target, adv_logits - mirrored_logits)
        weight, clean_weight = self.weights(adv_target)
        time = (batch.epoch + 1) / cfg.epochs
        losses = weight * (adv_kl + cfg.gradient_weight * time * difference_kl)
        if cfg.beta:
            losses = losses + cfg.beta * clean_weight * kl(clean_target, self.model(images))
        terms = {"weight": weight, "adv_kl": adv_kl, "difference_kl": difference_kl}
        return Loss(losses.mean(), {name: value.mean().detach() for name, value in terms.items()})

    def teacher_gradient(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the teacher's clean logits (B, K) and the input gradient of the true class's logit (B, C, H, W)."""
        with torch.enable_grad():
            leaf = batch.images.detach().clone().requires_grad_(True)
            logits = self.teacher(leaf)
            gradient = torch.autograd.grad(logits.gather(1, batch.labels[:, None]).sum(), leaf)[0]
        return logits.detach(), gradient

    def attack(self, batch: Batch, clean_target: Tensor, gradient: Tensor) -> Tensor:
        """Maximize KL(p_T || p_S(x')); the teacher's true-class logit changes linearly with x' - x."""

        def objective(adv: Tensor) -> Tensor:
            change = ((adv - batch.images) * gradient).flatten(1).sum(1, keepdim=True)
            return kl(clean_target + self.config.linear_correction * change * true_class, self.model(adv))

        true_class = F.one_hot(batch.labels, clean_target.shape[1])

        with self.config.inner_attack_mode(self.model):
            return self.config.ascend_from_noise(objective, batch, self.threat)

    def inner_maximization(self, batch: Batch) -> Tensor:
        """Compute the teacher's gradient and attack the batch."""
        return self.attack(batch, *self.teacher_gradient(batch))

    def weights(self, adv_target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights (B,) of the adversarial and of the clean term, from the teacher's logits (B, K)."""
        entropy = renyi_entropy(adv_target.softmax(1), self.config.gamma)
        everywhere = gather_batch(entropy)[0]
        weight = ENTROPY_SCALE * (entropy - everywhere.min())
        spread = ENTROPY_SCALE * (everywhere.max() - everywhere.min())
        return weight, 1 - weight / (spread + 1e-8)


def renyi_entropy(probs: Tensor, order: float) -> Tensor:
    """Compute Renyi's entropy in nats, Shannon's at order 1: (B, K) -> (B,)."""
    if abs(order - 1) < 1e-6:
        return -(probs * (probs + 1e-12).log()).sum(1)
    return ((probs**order).sum(1) + 1e-12).log() / (1 - order)
