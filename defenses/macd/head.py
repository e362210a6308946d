"""The head phase: at the end, labels adjust the classifier (sections 1, 3.2 and 4.1; not in Algorithm 2).

The backbone is frozen and gets clean, unmasked images. BatchNorm's running statistics are computed on them first (G15):
those of the distillation belong to images with 70 % of their pixels removed. Then the classifier is trained on the
features, which are computed once (G14).
"""

from __future__ import annotations

import torch
from torch import nn

from robobench.api import Batch, DefenseSetup, Loss, PassCounts, Stage, linear_head_stages, train_stage

from .config import MACDConfig


def stages(setup: DefenseSetup, config: MACDConfig) -> list[Stage]:
    """Return the stages that the config has: BatchNorm's statistics, the features, and the training of the head."""
    made: list[Stage] = []
    if config.bn_recalibrate and any(map(is_batchnorm, setup.model.modules())):
        made.append(
            train_stage(
                config,
                "bn-recalibrate",
                lambda: Recalibrate(setup.model),
                epochs=1,
                augment="none",
                passes=PassCounts(forward=1),
            )
        )
    return made + (linear_head_stages(setup, config.head_config, services=config) if config.head_epochs else [])


def is_batchnorm(module: nn.Module) -> bool:
    """Return whether a module is a BatchNorm layer."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


class Recalibrate(nn.Module):
    """Recompute BatchNorm's running statistics on clean, unmasked images. Parameters do not change (G15)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        for module in filter(is_batchnorm, model.modules()):
            module.reset_running_stats()  # type: ignore[operator]
            module.momentum = None  # type: ignore[assignment]  # mean over all batches of the pass

    @torch.no_grad()
    def forward(self, batch: Batch) -> Loss:
        """Run a forward pass in train mode. The loss has no gradient, so that no optimizer step is taken."""
        self.model(batch.images)
        return Loss(batch.images.new_zeros(()))
