"""FGSM-PGI: FGSM from the perturbation that the image had in the previous epoch, with a consistency term.

Paper:   Jia et al., "Prior-Guided Adversarial Initialization for Fast Adversarial Training", ECCV 2022,
         arXiv:2207.08859; its best variant, FGSM-MEP, whose prior has a momentum.
Code:    github.com/jiaxiaojunQAQ/FGSM-PGI, FGSM_MEP.py (no license: read, not copied).
Family:  single-step adversarial training, 2022
Cost:    7
Reports: CIFAR-10, Linf 8/255, ResNet-18: 49.89 % AutoAttack (FastAT Benchmark, 2026).
Differs: the gradient's L1 norm in the momentum is a mean over the images of the batch, not their sum; in batches of one
         size this changes no sign. An image that the previous epoch did not show, as with extra images, starts anew.
Kept:    perturbations are not moved with the crops and flips of their images. The first attack point may lie outside
         of [0, 1]. The loss also changes the weights through the logits of that point. Labels are smoothed in the
         attack too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robobench.api import (
    DEFENSES,
    Batch,
    Defense,
    DefenseSetup,
    ImageState,
    Loss,
    PassCounts,
    Stage,
    ThreatModel,
    TrainConfig,
    mean_over_batch,
    recorded_attack,
    train_stage,
)


@dataclass(frozen=True, kw_only=True)
class FGSMPGIConfig(TrainConfig):
    """Published values."""

    epochs: int = 110
    drops: tuple[float, ...] = (100 / 110, 105 / 110)
    label_smoothing: float = 4 / 9  # the label has 0.6, each of 9 other classes 0.4 / 9
    relative_step: float = 1.0  # step size in units of eps
    consistency: float = 10.0  # weight of the squared difference of the logits; lambda in the paper
    decay: float = 0.3  # of the momentum, per epoch; mu in the paper
    reset: float = 40 / 110  # the perturbations start anew after this fraction of training

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("relative_step", self.relative_step > 0, "> 0")
        self.require("consistency", self.consistency >= 0, ">= 0")
        self.require("decay", 0 <= self.decay < 1, "in [0, 1)")
        self.require("reset", 0 < self.reset <= 1, "in (0, 1]")

    @property
    def reset_epochs(self) -> int:
        """Epochs between two new starts of the perturbations."""
        return max(1, round(self.reset * self.epochs))


@DEFENSES.register("fgsm-pgi")
class FGSMPGI(Defense):
    """FGSM training from the perturbation of the previous epoch, with a momentum and a consistency term."""

    Config = FGSMPGIConfig
    version = 1
    presets: ClassVar = {"quick": {"label_smoothing": 0.1}}

    def stages(self, setup: DefenseSetup) -> list[Stage]:
        """Return one stage. Perturbation and momentum of every image are kept from epoch to epoch."""
        state = ImageState((2, *setup.image_shape))
        objective = FGSMPGIObjective(setup.model, setup.threat, self.config, state)
        passes = PassCounts(forward=2, input_grad=1, weight_grad=2)
        return [train_stage(self.config, "train", objective, passes=passes, whole_batch=True, image_state=state)]


class FGSMPGIObjective(nn.Module):
    """CE(S(x'), y) + lambda * mean (S(x') - S(x + delta))^2, with delta the image's perturbation before this epoch."""

    def __init__(self, model: nn.Module, threat: ThreatModel, config: FGSMPGIConfig, state: ImageState) -> None:
        super().__init__()
        self.model, self.threat, self.config, self.state = model, threat, config, state

    def forward(self, batch: Batch) -> Loss:
        """Attack the batch, compute the loss, and store the perturbations of the next epoch.

        Returns:
            The loss, and metrics "adv_loss" and "consistency", each a mean over the batch.
        """
        delta, momentum = self.prior(batch)
        start = (batch.images + delta).requires_grad_(True)
        logits = self.model(start)
        adv = recorded_attack(lambda: self.attack(batch, start, logits, momentum))
        adv_logits = self.model(adv)
        adv_loss, consistency = F.cross_entropy(adv_logits, batch.labels), F.mse_loss(adv_logits, logits)
        terms = {"adv_loss": adv_loss.detach(), "consistency": consistency.detach()}
        return Loss(adv_loss + self.config.consistency * consistency, terms)

    def prior(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return perturbation and momentum of each image: a random corner of the ball and 0 at a new start."""
        images, index = batch.images, batch.index
        threat = self.config.threat_at_epoch(self.threat, batch.epoch)
        corner = threat.eps * threat.random_direction(images, batch.rng.child("start"))
        if batch.epoch % self.config.reset_epochs == 0:
            return corner, torch.zeros_like(images)
        delta, momentum = self.state.read(index, batch.epoch).to(images.dtype).unbind(1)
        unseen = ~momentum.flatten(1).any(1).view(-1, 1, 1, 1)
        return torch.where(unseen, corner, delta), momentum

    def attack(self, batch: Batch, start: Tensor, logits: Tensor, momentum: Tensor) -> Tensor:
        """Take one step along the gradient's sign, and one along the momentum's for the next epoch, which is stored."""
        losses = F.cross_entropy(logits, batch.labels, reduction="none")
        grad, start = torch.autograd.grad(losses.sum(), start, retain_graph=True)[0], start.detach()
        cfg, threat, images = self.config, self.config.threat_at_epoch(self.threat, batch.epoch), batch.images
        length = grad.abs().flatten(1).sum(1).mean()
        momentum = grad / mean_over_batch(length, len(images)).clamp_min(1e-30) + cfg.decay * momentum
        step = cfg.relative_step * threat.eps
        following = threat.step(start, momentum, step, images) - images
        self.state.write(batch.index, batch.epoch, torch.stack((following, momentum), dim=1))
        return threat.step(start, grad, step, images)

    def inner_maximization(self, batch: Batch) -> Tensor:
        """Return the adversarial examples of a batch."""
        delta, momentum = self.prior(batch)
        start = (batch.images + delta).requires_grad_(True)
        return self.attack(batch, start, self.model(start), momentum)
