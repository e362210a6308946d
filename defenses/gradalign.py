"""GradAlign: FGSM training with a penalty on the angle between input gradients at the image and at a random point.

Paper:   Andriushchenko and Flammarion, "Understanding and Improving Fast Adversarial Training", NeurIPS 2020,
         arXiv:2007.02617.
Code:    github.com/tml-epfl/understanding-fast-adv-training (no license: read, not copied); defaults follow the
         README's command for CIFAR-10 at 8/255.
Family:  single-step adversarial training, 2020
Cost:    10
Reports: CIFAR-10, Linf 8/255, PreActResNet-18: 79.84 % clean, 43.93 % AutoAttack (RobustBench,
         Andriushchenko2020Understanding).
Differs: the learning rate peaks at 30 % of training; the code's peaks at 40 %. In L2 the random point is uniform in
         direction and length; the code has Linf only. The code trains in half precision.
Kept:    the gradient at the image is detached. The random point is not clamped to [0, 1]. Images with a zero gradient
         are left out of the mean. The model is attacked in train mode.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robobench.api import (
    DEFENSES,
    Batch,
    Defense,
    DefenseSetup,
    Loss,
    PassCounts,
    SingleStepConfig,
    Stage,
    ThreatModel,
    input_gradient,
    recorded_attack,
    train_stage,
)


@dataclass(frozen=True, kw_only=True)
class GradAlignConfig(SingleStepConfig):
    """Published values: 30 epochs, cyclic learning rate up to 0.3."""

    epochs: int = 30
    lr: float = 0.3
    schedule: str = "one-cycle"
    relative_step: float = 1.25  # step size in units of eps; from the image itself, every step above 1 reaches eps
    weight: float = 0.2  # of 1 - cosine; lambda in the paper, which grows with eps there
    attack_bn_mode: str = "train"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("weight", self.weight >= 0, ">= 0")


@DEFENSES.register("gradalign")
class GradAlign(Defense):
    """FGSM training with aligned input gradients, against catastrophic overfitting."""

    Config = GradAlignConfig
    version = 1
    second_derivatives = True

    def stages(self, setup: DefenseSetup) -> list[Stage]:
        """Return one stage that trains on FGSM examples."""
        passes = PassCounts(forward=3, input_grad=3, weight_grad=2)
        objective = GradAlignObjective(setup.model, setup.threat, self.config)
        return [train_stage(self.config, "train", objective, passes=passes)]


class GradAlignObjective(nn.Module):
    """CE(S(x'), y) + lambda * (1 - cos(grad CE at x, grad CE at x + eta)), eta uniform in the ball."""

    def __init__(self, model: nn.Module, threat: ThreatModel, config: GradAlignConfig) -> None:
        super().__init__()
        self.model, self.threat, self.config = model, threat, config

    def forward(self, batch: Batch) -> Loss:
        """Attack the batch and compute the loss.

        Returns:
            The loss, and metric "cosine", a mean over the images whose two gradients are not zero.
        """
        adv, clean_grad = self.attack(batch)
        robust_loss = F.cross_entropy(self.model(adv), batch.labels)
        cosine = mean_cosine(clean_grad, self.random_gradient(batch))
        return Loss(robust_loss + self.config.weight * (1 - cosine), {"cosine": cosine.detach()})

    def inner_maximization(self, batch: Batch) -> Tensor:
        """Take one ascent step on the cross-entropy from the images, and project to the ball and [0, 1]."""
        return self.attack(batch)[0]

    def attack(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return adversarial examples and the input gradient at the images, both (B, C, H, W)."""
        cfg, threat = self.config, self.config.threat_at_epoch(self.threat, batch.epoch)
        with cfg.inner_attack_mode(self.model):
            grad = recorded_attack(
                lambda: input_gradient(lambda images: self.losses(images, batch.labels), batch.images)
            )
        return threat.step(batch.images, grad, cfg.relative_step * threat.eps, batch.images), grad

    def random_gradient(self, batch: Batch) -> Tensor:
        """Return the input gradient at a random point of the ball (B, C, H, W), itself differentiable."""
        threat, images = self.config.threat_at_epoch(self.threat, batch.epoch), batch.images
        rng = batch.rng.child("random point")
        if threat.norm == "Linf":
            point = images + threat.eps * (2 * rng.uniform_like(images) - 1)
        else:
            point = threat.random_start(images, rng)
        point.requires_grad_(True)
        return torch.autograd.grad(self.losses(point, batch.labels).sum(), point, create_graph=True)[0]

    def losses(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropy of each image, (B,)."""
        return F.cross_entropy(self.model(images), labels, reduction="none")


def mean_cosine(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean cosine of two gradients (B, C, H, W), over images where neither is zero; 1 if all are."""
    a, b = a.flatten(1), b.flatten(1)
    used = (a.norm(dim=1) != 0) & (b.norm(dim=1) != 0)
    a, b = a[used], b[used]
    cosines = (a / a.norm(dim=1, keepdim=True) * (b / b.norm(dim=1, keepdim=True))).sum(1)
    return cosines.mean() if len(cosines) else b.sum() + 1
