"""Trains a linear classifier on a frozen backbone: linear evaluation, and head phases of distillation methods."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robobench.core.module_state import eval_mode
from robobench.training.base import (
    Batch,
    DefenseSetup,
    Loss,
    PassCounts,
    Precompute,
    PrecomputedArray,
    Stage,
    train_stage,
)
from robobench.training.config import NO_SERVICES, TrainConfig, TrainServices

SERVICES = ("label_smoothing", "average", "average_decay", "average_start", "average_batchnorm")


def linear_head_stages(
    setup: DefenseSetup, config: TrainConfig, name: str = "head", services: TrainServices = NO_SERVICES
) -> list[Stage]:
    """Return two stages that train `setup.model.head` on clean images, without augmentation.

    The backbone does not change, so its features are computed once, in eval mode: a Precompute stage "head-features".

    Args:
        config: training settings of the head.
        name: of the second stage.
        services: the method's config; its label smoothing and weight averaging act on the head too.
    """
    head = cast(nn.Linear, setup.model.head)
    config = replace(config, **{field: getattr(services, field) for field in SERVICES})
    features = Precompute(
        name="head-features",
        function=lambda batch: clean_features(setup.model, batch.images),
        shape=(head.in_features,),
        passes=PassCounts(forward=1),
    )
    train = train_stage(
        config,
        name,
        lambda: HeadObjective(head, setup.precomputed["head-features"]),
        augment="none",
        passes=PassCounts(),  # those of a linear layer are negligible
    )
    return [features, train]


@torch.no_grad()
def clean_features(model: nn.Module, images: Tensor) -> Tensor:
    """Return the features (B, D) float32 of images, in eval mode."""
    with eval_mode(model):
        return cast(Tensor, model.features(images)).float()  # type: ignore[operator]


class HeadObjective(nn.Module):
    """Cross-entropy of the head on stored features."""

    def __init__(self, head: nn.Module, features: PrecomputedArray) -> None:
        super().__init__()
        self.head, self.features = head.requires_grad_(True), features

    def forward(self, batch: Batch) -> Loss:
        """Compute the mean cross-entropy; metric "class_loss"."""
        class_loss = F.cross_entropy(self.head(self.features[batch.index]), batch.labels)
        return Loss(class_loss, {"class_loss": class_loss.detach()})
