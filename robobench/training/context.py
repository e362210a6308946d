"""Inputs and outputs of the training loop: image source, runtime (device, precision, seed), record of a stage."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from robobench.core.console import Reporter
from robobench.core.rng import KeyedRng
from robobench.core.soft_labels import SoftLabels
from robobench.core.threat import ThreatModel
from robobench.core.timing import Account
from robobench.data.augment import augment
from robobench.data.mixing import mix
from robobench.distributed import collectives
from robobench.models.wrapper import PreprocessedModel
from robobench.training.base import Batch, Stage, Train
from robobench.training.config import NO_SERVICES, TrainServices

RECOMPILE_LIMIT = 64  # variants of one function that torch.compile keeps in a process


class ImageSource(Protocol):
    """Training images in any storage."""

    labels: Tensor  # (N,) int64

    def __len__(self) -> int: ...

    def images(self, index: Tensor) -> Tensor:
        """Return images (B, C, H, W) float in [0, 1] for an index (B,) int64."""
        ...


def configure_compiler() -> None:
    """Let a process compile for many trainings, and a compiled graph be differentiated twice.

    torch stops compiling a function after 8 variants (of mode, batch, gradient), which a grid of trainings reaches; its
    later trainings would be slower than the first. Donated buffers forbid `retain_graph`, which some methods use.
    """
    import torch._dynamo.config as dynamo
    import torch._functorch.config as functorch

    dynamo.recompile_limit = max(dynamo.recompile_limit, RECOMPILE_LIMIT)
    functorch.donated_buffer = False


@dataclass(frozen=True)
class TrainRuntime:
    """Device, precision, seed and compilation of a run."""

    device: str
    precision: str
    seed: int
    reporter: Reporter = field(default_factory=lambda: Reporter(-1))
    compiled: bool = False
    threat: ThreatModel | None = None  # of training; each batch draws one of several

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of the run's precision: bf16 autocast or none."""
        return torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.precision == "bf16")

    def draw_threat(self, *parts: str | int) -> None:
        """Draw the threat model of a batch, keyed by seed and parts."""
        if self.threat is not None:
            self.threat.draw(self.seed, *parts)

    def compile(self, module: nn.Module) -> None:
        """Compile the models inside a module in place, if compilation is on. Their first passes are then slow."""
        if self.compiled:
            configure_compiler()
            for part in module.modules():
                if isinstance(part, PreprocessedModel):
                    part.net.compile(dynamic=True)

    def batch(
        self,
        data: ImageSource,
        index: Tensor,
        stage: str,
        epoch: int,
        augmentation: str = "none",
        services: TrainServices = NO_SERVICES,
        partners: Tensor | None = None,
    ) -> Batch:
        """Return the images of an index (B,) as an augmented batch. Draws are keyed by seed, stage, epoch and image.

        Args:
            services: label smoothing, MixUp and CutMix.
            partners: (B,) int64, the images to mix with; None mixes nothing.
        """
        rng = KeyedRng.of(index.to(self.device), self.seed, stage, epoch)
        images = augment(data.images(index), rng.child("augment"), augmentation)
        labels, other, share = data.labels[index].to(self.device), None, None
        if partners is not None and (services.mixup or services.cutmix):
            second = self.batch(data, partners, stage, epoch, augmentation)
            images, share = mix(images, second.images, rng.child("mix"), services.mixup, services.cutmix)
            other = second.labels
        if services.label_smoothing or other is not None:
            smooth, in_attack = services.label_smoothing, services.smooth_attack
            labels = SoftLabels.of(labels, smooth, smooth_attack=in_attack, other=other, share=share)
        return Batch(images, labels, rng.index, epoch, rng)


@dataclass
class StageRecord:
    """Cost and metrics of a stage."""

    name: str
    seconds: float
    cpu_seconds: float
    peak_memory_bytes: int
    warmup_seconds: float
    epochs: int
    images: int  # images seen, over all epochs
    passes: dict[str, float] | None
    metrics: dict[str, float] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)

    @property
    def seconds_per_epoch(self) -> float:
        """Mean seconds per epoch."""
        return self.seconds / max(self.epochs, 1)

    @property
    def images_per_second(self) -> float:
        """Training images per second."""
        return self.images / self.seconds if self.seconds else math.nan


def make_stage_record(
    stage: Stage, account: Account, *, warmup_seconds: float, epochs: int, images: int
) -> StageRecord:
    """Return a stage's record, with the cost from its account."""
    return StageRecord(
        name=stage.name,
        seconds=account.seconds,
        cpu_seconds=account.cpu_seconds,
        peak_memory_bytes=account.peak_memory_bytes,
        warmup_seconds=warmup_seconds,
        epochs=epochs,
        images=images,
        passes=asdict(stage.passes) if stage.passes else None,
    )


def build_objective(stage: Train, device: str) -> nn.Module:
    """Return a stage's objective on the device. If the stage has a function for it, it is called now."""
    made = stage.objective if isinstance(stage.objective, nn.Module) else stage.objective()
    return made.to(device)


def reduce_account(account: Account) -> None:
    """Put the CPU seconds of all processes into rank 0's account, and the highest memory peak into every one."""
    cpu_seconds = collectives.all_reduce_sum(account.cpu_seconds)
    account.cpu_seconds = cpu_seconds if collectives.is_rank_zero() else 0.0
    account.peak_memory_bytes = int(collectives.all_reduce_max(account.peak_memory_bytes))
