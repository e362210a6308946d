"""Standard training: cross-entropy on clean images. The undefended baseline for every defense.

Family:  no adversarial training
Cost:    3
"""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import nn

from robobench.api import DEFENSES, Batch, Defense, DefenseSetup, Loss, PassCounts, Stage, train_stage


@DEFENSES.register("standard")
class Standard(Defense):
    """No defense: cross-entropy on clean images."""

    version = 1
    adversarial = False
    presets: ClassVar = {
        "quick:large": {"epochs": 3},  # two of them are trained beside a defense: transfer source and baseline
        # Section 4.1 of the MACD paper, which does not state batch size, schedule and augmentation.
        "paper": {"epochs": 20, "batch_size": 64, "lr": 0.003, "schedule": "constant", "augment": "none"},
    }

    def stages(self, setup: DefenseSetup) -> list[Stage]:
        """Return one stage that trains on clean images."""
        passes = PassCounts(forward=1, weight_grad=1)
        return [train_stage(self.config, "train", CrossEntropy(setup.model), passes=passes)]


class CrossEntropy(nn.Module):
    """Mean cross-entropy on the clean images."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Loss:
        """Compute the loss of a batch."""
        return Loss(F.cross_entropy(self.model(batch.images), batch.labels))
