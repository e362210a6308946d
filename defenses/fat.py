"""FAT: adversarial training on friendly examples: PGD stops tau steps after the model errs.

Paper:   Zhang et al., "Attacks Which Do Not Kill Training Make Adversarial Learning Stronger", ICML 2020,
         arXiv:2002.11242.
Code:    github.com/zjfheart/Friendly-Adversarial-Training (no license: read, not copied); defaults follow FAT.py.
Family:  adversarial training, 2020
Cost:    2k + 3
Reports: CIFAR-10, Linf 0.031, WideResNet-32-10: 89.34 % clean, 46.13 % PGD-20 (README).
Differs: the step size is 0.25 eps; the code has 0.007 / 0.031. The learning rate of the last epochs is 1/1000 of the
         first one, not 1/200. Images that stopped are passed through the model until the attack ends, where the code
         drops them; the declared passes are therefore upper bounds of what the method needs.
Kept:    every step adds normal noise of `noise` before the projection.
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
    Loss,
    PassCounts,
    Stage,
    ThreatModel,
    input_gradient,
    per_image,
    recorded_attack,
    train_stage,
)


@dataclass(frozen=True, kw_only=True)
class FATConfig(AdvTrainConfig):
    """Published values."""

    epochs: int = 120
    weight_decay: float = 2e-4
    drops: tuple[float, ...] = (59 / 120, 89 / 120, 109 / 120)
    noise: float = 0.001  # standard deviation of the noise of a step, on the [0, 1] scale; omega in the code
    patience: tuple[float, ...] = (50 / 120, 90 / 120)  # times after which tau grows by 1, from 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("noise", self.noise >= 0, ">= 0")
        self.require("patience", all(0 <= time <= 1 for time in self.patience), "fractions of training in [0, 1]")

    def tau(self, epoch: int) -> int:
        """Return how many steps the attack goes on after an image is misclassified."""
        return sum(epoch >= round(time * self.epochs) for time in self.patience)


@DEFENSES.register("fat")
class FAT(Defense):
    """Adversarial training on PGD examples that stop soon after they are misclassified."""

    Config = FATConfig
    version = 1
    presets: ClassVar = {"quick": {"inner_steps": 5}, "quick:large": {"inner_steps": 3}}

    def stages(self, setup: DefenseSetup) -> list[Stage]:
        """Return one stage that trains on friendly examples."""
        steps = self.config.inner_steps
        passes = PassCounts(forward=steps + 1, input_grad=steps, weight_grad=1)
        return [train_stage(self.config, "train", FATObjective(setup.model, setup.threat, self.config), passes=passes)]


class FATObjective(nn.Module):
    """Mean cross-entropy on the first iterate that is misclassified, or on one tau steps later."""

    def __init__(self, model: nn.Module, threat: ThreatModel, config: FATConfig) -> None:
        super().__init__()
        self.model, self.threat, self.config = model, threat, config

    def forward(self, batch: Batch) -> Loss:
        """Attack the batch and compute the loss."""
        return Loss(F.cross_entropy(self.model(self.inner_maximization(batch)), batch.labels))

    def inner_maximization(self, batch: Batch) -> Tensor:
        """Run PGD on the cross-entropy from a uniform random start; each image stops on its own."""
        with self.config.inner_attack_mode(self.model):
            return recorded_attack(lambda: self._attack(batch))

    def _attack(self, batch: Batch) -> Tensor:
        cfg, images, rng = self.config, batch.images, batch.rng
        threat = cfg.threat_at_epoch(self.threat, batch.epoch)
        adv = threat.random_start(images, rng.child("start"))
        left = torch.full((len(images),), cfg.tau(batch.epoch), device=images.device)  # steps after the first error
        moving = torch.ones_like(left, dtype=torch.bool)

        outputs: list[Tensor] = []

        def objective(adv: Tensor) -> Tensor:
            outputs.append(self.model(adv))
            return F.cross_entropy(outputs[-1], batch.labels, reduction="none")

        for number in range(cfg.inner_steps):
            grad = input_gradient(objective, adv)
            logits = outputs.pop().detach()
            wrong = logits.argmax(1) != batch.labels
            moving = moving & ~(wrong & (left == 0))
            left = left - (moving & wrong).long()
            noisy = adv + cfg.noise * rng.child("step", number).normal_like(images)
            moved = threat.step(noisy, grad, cfg.relative_step * threat.eps, images)
            adv = torch.where(per_image(moving, adv), moved, adv)
        return adv
