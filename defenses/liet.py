"""LIET: FGSM from perturbations that carry label information, partly replaced by noise and of random sign.

Paper:   Pan et al., "Mitigating Catastrophic Overfitting in Fast Adversarial Training via Label Information
         Elimination", ICCV 2025.
Code:    github.com/fzjcdt/LIET (no license: read, not copied); defaults follow its CIFAR-10 configuration.
Family:  single-step adversarial training, 2025
Cost:    7
Reports: CIFAR-10, Linf 8/255, ResNet-18: 80.68 % clean, 49.99 % AutoAttack, averaged weights (FastAT Benchmark, 2026).
Differs: without weight averaging, which the code always uses (`average=ema`, `average_decay=0.9995`). Mask ratio and
         sign are drawn per image, not per batch. The learning rate changes every step, linearly. Above 8/255 the code
         doubles the noise and does not project; here every radius is treated as 8/255.
Kept:    the labels of every loss, that of the attack included, have random soft values on the other classes.
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
    KeyedRng,
    Loss,
    PassCounts,
    Stage,
    ThreatModel,
    TrainConfig,
    attack_mode,
    input_gradient,
    recorded_attack,
    train_stage,
)


@dataclass(frozen=True, kw_only=True)
class LIETConfig(TrainConfig):
    """Published values: 100 epochs, one cycle of the learning rate up to 0.1."""

    epochs: int = 100
    schedule: str = "one-cycle"
    smoothing: float = 0.6  # share of the other classes in the target
    consistency: float = 100.0  # weight of the Jensen-Shannon divergence in the last epoch; it grows linearly
    min_mask: float = 0.1  # smallest and largest share of an image's values that get noise
    max_mask: float = 0.5
    update_steps: int = 20  # steps between two updates of the label perturbations

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("label_smoothing", self.label_smoothing == 0, "0 (the method has its own: smoothing)")
        self.require("smoothing", 0 <= self.smoothing < 1, "in [0, 1)")
        self.require("consistency", self.consistency >= 0, ">= 0")
        self.require("min_mask", 0 <= self.min_mask <= self.max_mask, "in [0, max_mask]")
        self.require("max_mask", self.max_mask <= 1, "<= 1")
        self.require("update_steps", self.update_steps >= 1, ">= 1")


@DEFENSES.register("liet")
class LIET(Defense):
    """FGSM training from label perturbations with noise and random sign, with a consistency term."""

    Config = LIETConfig
    version = 1
    # The published weights are for 100 epochs; a short training needs its labels more.
    presets: ClassVar = {"quick": {"smoothing": 0.1, "consistency": 10.0}}

    @classmethod
    def why_unsupported(cls, threat: ThreatModel) -> str | None:
        """Label perturbations are corners of the Linf ball."""
        return None if threat.norm == "Linf" else "its label perturbations are corners of the Linf ball"

    def stages(self, setup: DefenseSetup) -> list[Stage]:
        """Return one stage. The passes of the label perturbations, one image per class in 20 steps, are not counted."""
        passes = PassCounts(forward=2, input_grad=1, weight_grad=2)
        objective = LIETObjective(setup.model, setup.threat, self.config, setup.num_classes, setup.image_shape)
        return [train_stage(self.config, "train", objective, passes=passes, on_epoch_end=objective.begin_epoch)]


class LIETObjective(nn.Module):
    """CE(S(x'), y~) + lambda(epoch) * JS(p_S(x'), p_S(x0)), y~ random soft labels, x0 the start of the attack."""

    signs: Tensor
    steps: Tensor

    def __init__(
        self,
        model: nn.Module,
        threat: ThreatModel,
        config: LIETConfig,
        num_classes: int,
        image_shape: tuple[int, int, int],
    ) -> None:
        super().__init__()
        self.model, self.threat, self.config, self.num_classes = model, threat, config, num_classes
        self.register_buffer("signs", torch.zeros(num_classes, *image_shape))  # of the label perturbations
        self.register_buffer("steps", torch.tensor(0))  # of this epoch

    def forward(self, batch: Batch) -> Loss:
        """Attack the batch and compute the loss; metrics "adv_loss" and "consistency", means over the batch."""
        if self.steps % self.config.update_steps == 0:
            self.update_signs(batch)
        self.steps += 1
        start = self.draw_start(batch).requires_grad_(True)
        logits = self.model(start)
        adv = recorded_attack(lambda: self.attack(batch, start, logits))
        adv_logits = self.model(adv)
        adv_loss = self.loss(adv_logits, batch.labels, batch.rng.child("labels")).mean()
        consistency = jensen_shannon(logits, adv_logits).mean()
        weight = self.config.consistency * (batch.epoch + 1) / self.config.epochs
        terms = {"adv_loss": adv_loss.detach(), "consistency": consistency.detach()}
        return Loss(adv_loss + weight * consistency, terms)

    def begin_epoch(self, batch: Batch) -> tuple[dict[str, float], bool]:
        """Count steps from 0 again; training goes on."""
        self.steps.zero_()
        return {}, False

    @torch.no_grad()
    def update_signs(self, batch: Batch) -> None:
        """Replace the label perturbations by the signs of the gradient at a gray image, for each class as its label."""
        labels = torch.arange(self.num_classes, device=self.signs.device)
        rng = KeyedRng.of(labels, "label-perturbation", batch.epoch, int(self.steps))

        def objective(gray: Tensor) -> Tensor:
            return self.loss(self.model(gray), labels, rng)

        with attack_mode(self.model):
            self.signs.copy_(input_gradient(objective, torch.full_like(self.signs, 0.5)).sign())

    def draw_start(self, batch: Batch) -> Tensor:
        """Return x plus or minus the label's perturbation, with noise in place of a random share of its values."""
        cfg, rng, images = self.config, batch.rng.child("start"), batch.images
        eps = cfg.threat_at_epoch(self.threat, batch.epoch).eps
        order, noise = rng.child("mask").uniform_like(images), rng.child("noise").uniform_like(images)
        share = cfg.min_mask + (cfg.max_mask - cfg.min_mask) * rng.child("share").uniform(1, 1, 1)
        sign = 1 - 2 * (rng.child("sign").uniform(1, 1, 1) < 0.5).to(images.dtype)
        delta = torch.where(order < share, 2 * noise - 1, self.signs[batch.labels].to(images.dtype))
        return (images + sign * eps * delta).clamp(0, 1)

    def loss(self, logits: Tensor, labels: Tensor, rng: KeyedRng) -> Tensor:
        """Compute the cross-entropy (B,) with `smoothing` spread over the other classes by random shares."""
        one_hot = F.one_hot(labels, self.num_classes).to(logits.dtype)
        shares = rng.uniform(self.num_classes).to(logits.dtype) * (1 - one_hot)
        shares = shares / shares.sum(1, keepdim=True)
        target = (1 - self.config.smoothing) * one_hot + self.config.smoothing * shares
        return -(target * logits.log_softmax(1)).sum(1)

    def attack(self, batch: Batch, start: Tensor, logits: Tensor) -> Tensor:
        """Take one step of the radius from `start`, whose logits are given, and project to the ball and [0, 1]."""
        losses = self.loss(logits, batch.labels, batch.rng.child("attack-labels"))
        grad = torch.autograd.grad(losses.sum(), start, retain_graph=True)[0]
        threat = self.config.threat_at_epoch(self.threat, batch.epoch)
        return threat.step(start.detach(), grad, threat.eps, batch.images)

    def inner_maximization(self, batch: Batch) -> Tensor:
        """Return the adversarial examples of a batch."""
        start = self.draw_start(batch).requires_grad_(True)
        return self.attack(batch, start, self.model(start))


def jensen_shannon(first: Tensor, second: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence (B,) in nats of the predictions of two sets of logits (B, K)."""
    p, q = first.softmax(1), second.softmax(1)
    middle = ((p + q) / 2).log()
    return (torch.xlogy(p, p) - p * middle + torch.xlogy(q, q) - q * middle).sum(1) / 2
