"""Gaussian augmentation: cross-entropy on images with normal noise. No adversarial example is made.

Paper:   Cohen, Rosenfeld, Kolter, "Certified Adversarial Robustness via Randomized Smoothing", ICML 2019,
         arXiv:1902.02918, which trains so the models that it smooths.
Code:    github.com/locuslab/smoothing, code/train.py; defaults follow its CIFAR-10 command with sigma 0.25.
Family:  no adversarial training, 2019
Cost:    3
Expect:  without smoothing, robustness to random noise and nearly none to a white-box attack: a sanity row.
Kept:    noisy images are not clipped to [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import nn

from robobench.api import DEFENSES, Batch, Defense, DefenseSetup, Loss, PassCounts, Stage, TrainConfig, train_stage


@dataclass(frozen=True, kw_only=True)
class GaussianConfig(TrainConfig):
    """Published values: 90 epochs, the learning rate is divided by 10 at epochs 30 and 60."""

    epochs: int = 90
    batch_size: int = 256
    weight_decay: float = 1e-4
    drops: tuple[float, ...] = (1 / 3, 2 / 3)
    sigma: float = 0.25  # standard deviation of the noise, on the [0, 1] image scale

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("sigma", self.sigma >= 0, ">= 0")


@DEFENSES.register("gaussian")
class Gaussian(Defense):
    """Standard training on images with Gaussian noise; no attack."""

    Config = GaussianConfig
    version = 1
    adversarial = False

    def stages(self, setup: DefenseSetup) -> list[Stage]:
        """Return one stage that trains on noisy images."""
        passes = PassCounts(forward=1, weight_grad=1)
        return [train_stage(self.config, "train", GaussianObjective(setup.model, self.config), passes=passes)]


class GaussianObjective(nn.Module):
    """Mean cross-entropy on x + sigma N(0, 1)."""

    def __init__(self, model: nn.Module, config: GaussianConfig) -> None:
        super().__init__()
        self.model, self.config = model, config

    def forward(self, batch: Batch) -> Loss:
        """Compute the loss of a batch."""
        noisy = batch.images + self.config.sigma * batch.rng.child("noise").normal_like(batch.images)
        return Loss(F.cross_entropy(self.model(noisy), batch.labels))
