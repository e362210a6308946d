"""Free adversarial training: every batch is used m times, and each backward pass also moves the perturbation.

Paper:   Shafahi et al., "Adversarial Training for Free!", NeurIPS 2019, arXiv:1904.12843.
Code:    github.com/ashafahi/free_adv_train (TensorFlow); defaults follow train_free.py of
         github.com/locuslab/fast_adversarial.
Family:  single-step adversarial training, 2019
Cost:    24
Reports: CIFAR-10, Linf 8/255, ResNet-18: 44.34 % AutoAttack (FastAT Benchmark, 2026).
Differs: the learning rate peaks at 30 % of training; the code's peaks at 50 %. Batches of an epoch have nearly equal
         sizes. With several devices each keeps its own perturbation.
Kept:    the perturbation of the last batch starts the next one, whose images it may move out of [0, 1] once.
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
    Loss,
    PassCounts,
    Stage,
    ThreatModel,
    TrainConfig,
    train_stage,
)


@dataclass(frozen=True, kw_only=True)
class FreeATConfig(TrainConfig):
    """Published values: 10 epochs of 8 replays, cyclic learning rate up to 0.04."""

    epochs: int = 10
    lr: float = 0.04
    schedule: str = "one-cycle"
    replays: int = 8  # steps on every batch; m in the paper
    relative_step: float = 1.0  # step size in units of eps

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("replays", self.replays >= 1, ">= 1")
        self.require("relative_step", self.relative_step > 0, "> 0")


@DEFENSES.register("free-at")
class FreeAT(Defense):
    """Adversarial training that reuses each backward pass for the attack, several times per batch."""

    Config = FreeATConfig
    version = 1
    presets: ClassVar = {"quick": {"replays": 4}}

    def stages(self, setup: DefenseSetup) -> list[Stage]:
        """Return one stage. The input gradient comes with the weights' backward pass, so it is not counted."""
        replays = self.config.replays
        objective = FreeATObjective(setup.model, setup.threat, self.config, setup.image_shape)
        passes = PassCounts(forward=replays, weight_grad=replays)
        return [train_stage(self.config, "train", objective, passes=passes, replays=replays, whole_batch=True)]


class FreeATObjective(nn.Module):
    """Mean cross-entropy on x + delta. The backward pass of the loss also takes an ascent step on delta."""

    delta: Tensor

    def __init__(
        self, model: nn.Module, threat: ThreatModel, config: FreeATConfig, image_shape: tuple[int, int, int]
    ) -> None:
        super().__init__()
        self.model, self.threat, self.config = model, threat, config
        self.register_buffer("delta", torch.zeros(config.batch_size, *image_shape))  # by position in the batch

    def forward(self, batch: Batch) -> Loss:
        """Compute the loss; its backward pass moves the perturbation."""
        threat, images = self.config.threat_at_epoch(self.threat, batch.epoch), batch.images
        delta = self.delta[: len(images)].clone().requires_grad_(True)

        def ascend(grad: Tensor) -> None:
            adv = threat.step(images + delta.detach(), grad, self.config.relative_step * threat.eps, images)
            self.delta[: len(images)] = adv - images

        delta.register_hook(ascend)  # type: ignore[no-untyped-call]
        return Loss(F.cross_entropy(self.model(images + delta), batch.labels))
