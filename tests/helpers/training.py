"""Objectives and stages that the tests of the training loop run."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robobench.core.timing import Stopwatch
from robobench.store.artifacts import Store
from robobench.store.partial import PartialResults
from robobench.testing import Blobs, SmallNet
from robobench.training.base import Batch, Loss, Train, train_stage
from robobench.training.checkpoint import Checkpoint
from robobench.training.config import TrainConfig
from robobench.training.context import StageRecord, TrainRuntime
from robobench.training.loop import run_train

RUNTIME = TrainRuntime("cpu", "fp32", 0)
STEPS = 2 * 3  # of `FragileObjective`: two epochs of 48 images in batches of at most 20


class RecordingObjective(nn.Module):
    """Cross-entropy that records its batches."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.batches: list[Batch] = []

    def forward(self, batch: Batch) -> Loss:
        self.batches.append(batch)
        return Loss(F.cross_entropy(self.model(batch.images), batch.labels), {"one": torch.tensor(1.0)})


def stage_of(objective: nn.Module, **values: Any) -> Train:
    """A stage of two epochs; `values` are fields of TrainConfig."""
    config = TrainConfig(**{"epochs": 2, "batch_size": 20, "lr": 0.05, "augment": "none", **values})
    return train_stage(config, "train", objective)


class FragileObjective(nn.Module):
    """Cross-entropy with dropout and a buffer that changes in every step.

    It raises at step `dies_at`, and runs out of memory with more than `max_images` images.
    """

    def __init__(self, dies_at: int | None = None, max_images: int = 1000) -> None:
        super().__init__()
        self.model = SmallNet()
        self.register_buffer("balance", torch.tensor(0.5))
        self.steps, self.dies_at, self.max_images = 0, dies_at, max_images

    def forward(self, batch: Batch) -> Loss:
        if self.steps == self.dies_at:
            raise ZeroDivisionError
        self.steps += self.training and batch.epoch < 2  # the warm-up's copy runs with epoch 2
        torch.empty(1 if len(batch.index) <= self.max_images else 2**58)  # the allocator refuses the second
        loss = F.cross_entropy(F.dropout(self.model(batch.images), 0.2), batch.labels)
        self.balance.lerp_(loss.detach(), 0.1)
        return Loss(self.balance.clone() * loss, {"plain": loss.detach()})


def sgd(objective: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(objective.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)


def fragile_stage(
    objective: nn.Module, optimizer: Callable[[nn.Module], torch.optim.Optimizer] = sgd, **fields: Any
) -> Train:
    return Train(
        name="train",
        objective=objective.to(memory_format=torch.channels_last),
        epochs=2,
        batch_size=20,
        optimizer=optimizer,
        schedule=lambda epoch: 1 / (1 + epoch),
        augment="crop-flip",
        **fields,
    )


def checkpoint_in(folder: Path, every: float = 0.0) -> Checkpoint:
    """A checkpoint that saves after every step whatever it costs, or never if `every` is above 0."""
    checkpoint = Checkpoint(PartialResults(Store(folder), "checkpoints/one"), every)
    checkpoint.due = lambda: every == 0  # type: ignore[method-assign]
    return checkpoint


def train(
    objective: nn.Module, checkpoint: Checkpoint | None = None, **fields: Any
) -> tuple[dict[str, Tensor], list[tuple[int, dict[str, float]]], StageRecord]:
    """Run `fragile_stage`; return the final state, the logged metrics by epoch and the record."""
    log: list[tuple[int, dict[str, float]]] = []
    record, trained = run_train(
        RUNTIME,
        fragile_stage(objective, **fields),
        Blobs(),
        Stopwatch(wall=lambda: 0.0, cpu=lambda: 0.0),
        lambda name, epoch, metrics: log.append((epoch, metrics)),
        checkpoint,
    )
    return copy.deepcopy(trained.state_dict()), log, record
