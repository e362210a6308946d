"""The head phase: at the end, labels adjust the classifier (sections 1, 3.2 and 4.1; not in Algorithm 2).

The backbone is frozen and gets clean, unmasked images. BatchNorm's running statistics are computed on them first (G15):
those of the distillation belong to images with 70 % of their pixels removed. Then the classifier is trained on the
features, which are computed once (G14).
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robobench.api import (
    Batch,
    DefenseSetup,
    Loss,
    PassCounts,
    Precompute,
    PrecomputedArray,
    Stage,
    eval_mode,
    lr_schedule,
    sgd,
    train_stage,
)

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
    if config.head_epochs:
        head = config.head_config
        made += [
            Precompute(
                name="head-features",
                function=lambda batch: clean_features(setup.model, batch.images),
                shape=(cast(nn.Linear, setup.model.head).in_features,),
                batch_size=config.batch_size,
                passes=PassCounts(forward=1),
            ),
            train_stage(
                head,
                "head",
                lambda: HeadObjective(cast(nn.Module, setup.model.head), setup.precomputed["head-features"]),
                optimizer=sgd(head),
                schedule=lr_schedule(head),
                passes=PassCounts(),  # those of the linear layer are negligible
            ),
        ]
    return made


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


@torch.no_grad()
def clean_features(model: nn.Module, images: Tensor) -> Tensor:
    """Return the features (B, D) of images, in eval mode."""
    with eval_mode(model):
        return cast(Tensor, model.features(images).float())  # type: ignore[operator]


class HeadObjective(nn.Module):
    """Cross-entropy of the head only, on stored features of the frozen backbone (G14)."""

    def __init__(self, head: nn.Module, features: PrecomputedArray) -> None:
        super().__init__()
        self.head, self.features = head, features

    def forward(self, batch: Batch) -> Loss:
        """Compute the mean cross-entropy; metric "class_loss"."""
        class_loss = F.cross_entropy(self.head(self.features[batch.index]), batch.labels)
        return Loss(class_loss, {"class_loss": class_loss})
