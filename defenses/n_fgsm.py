"""N-FGSM: one FGSM step from strong uniform noise, not projected back to the ball.

Paper:   de Jorge et al., "Make Some Noise: Reliable and Efficient Single-Step Adversarial Training", NeurIPS 2022,
         arXiv:2202.01181.
Code:    github.com/pdejorge/N-FGSM (MIT); defaults follow its train.py.
Family:  single-step adversarial training, 2022
Cost:    5
Reports: CIFAR-10, Linf 8/255, ResNet-18: 78.59 % clean, 47.77 % AutoAttack (FastAT Benchmark, 2026).
Differs: the learning rate peaks at 30 % of training; the code's peaks at 50 %. In L2 the noise is uniform in direction
         and length; the code has Linf only.
Kept:    training images lie up to (noise + relative_step) eps from the original, outside the threat model. The model
         is attacked in train mode.
"""

from __future__ import annotations

from dataclasses import dataclass

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
class NFGSMConfig(SingleStepConfig):
    """Published values: 30 epochs, cyclic learning rate up to 0.2."""

    epochs: int = 30
    lr: float = 0.2
    schedule: str = "one-cycle"
    relative_step: float = 1.0  # step size in units of eps; alpha / eps in the paper
    noise: float = 2.0  # radius of the noise in units of eps; k in the paper
    attack_bn_mode: str = "train"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("noise", self.noise >= 0, ">= 0")


@DEFENSES.register("n-fgsm")
class NFGSM(Defense):
    """Adversarial training with one FGSM step from strong noise, without projection."""

    Config = NFGSMConfig
    version = 1

    def stages(self, setup: DefenseSetup) -> list[Stage]:
        """Return one stage that trains on the perturbed images."""
        passes = PassCounts(forward=2, input_grad=1, weight_grad=1)
        objective = NFGSMObjective(setup.model, setup.threat, self.config)
        return [train_stage(self.config, "train", objective, passes=passes)]


class NFGSMObjective(nn.Module):
    """Mean cross-entropy on x + eta + alpha sign(grad), clipped to [0, 1] only."""

    def __init__(self, model: nn.Module, threat: ThreatModel, config: NFGSMConfig) -> None:
        super().__init__()
        self.model, self.threat, self.config = model, threat, config

    def forward(self, batch: Batch) -> Loss:
        """Perturb the batch and compute the loss."""
        perturbed = recorded_attack(lambda: self.perturb(batch))
        return Loss(F.cross_entropy(self.model(perturbed), batch.labels))

    def perturb(self, batch: Batch) -> Tensor:
        """Add noise of `noise` times the radius, then take one ascent step; both are clipped to [0, 1]."""
        cfg, threat, images = self.config, self.config.threat_at_epoch(self.threat, batch.epoch), batch.images
        noise, rng = cfg.noise * threat.eps, batch.rng.child("start")
        if threat.norm == "Linf":
            start = images + noise * (2 * rng.uniform_like(images) - 1)
        else:
            start = threat.scaled(cfg.noise).random_start(images, rng)
        start = start.clamp(0, 1)

        def objective(adv: Tensor) -> Tensor:
            return F.cross_entropy(self.model(adv), batch.labels, reduction="none")

        with cfg.inner_attack_mode(self.model):
            direction = threat.direction(input_gradient(objective, start))
        return (start + cfg.relative_step * threat.eps * direction).clamp(0, 1)
