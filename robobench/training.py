"""Runs the stages of a defense: the core steps, the method computes.

What the clock sees is one block in each loop below; logging, measuring and saving stand outside it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from robobench.api import Batch, Loss, Produce, Stage, Train
from robobench.augment import augment
from robobench.errors import NonFiniteLossError
from robobench.inner import eval_mode
from robobench.progress import Reporter
from robobench.randomness import Noise, key, permutation
from robobench.timing import Account, Stopwatch

MEASURE_IMAGES = 256  # training images a stage's `measure` looks at
CHECK_EVERY = 20  # steps between looks at the loss on a GPU, where a look waits for the device


class Images(Protocol):
    """The training images, wherever they are kept."""

    labels: Tensor  # (N,) int64, on the CPU

    def __len__(self) -> int: ...

    def images(self, index: Tensor) -> Tensor:
        """Return (B, C, H, W) float in [0, 1] for (B,) int64."""
        ...


@dataclass(frozen=True)
class Engine:
    """How stages are run: where, how precisely, from which seed."""

    device: str
    precision: str
    seed: int
    reporter: Reporter = field(default_factory=lambda: Reporter(-1))

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of the run's precision: bf16 autocast or none."""
        return torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.precision == "bf16")

    def batch(self, data: Images, index: Tensor, stage: str, epoch: int, how: str = "none") -> Batch:
        """Read and augment the images of an index; every draw is keyed by seed, stage, epoch and image."""
        noise = Noise.of(index.to(self.device), self.seed, stage, epoch)
        images = augment(data.images(index), noise.child("augment"), how)
        labels = data.labels[index].to(self.device)
        return Batch(images, labels, index.to(self.device), epoch, noise)


@dataclass
class StageRecord:
    """What a stage cost and what it reported."""

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
        """Mean seconds of one pass over the training images."""
        return self.seconds / max(self.epochs, 1)

    @property
    def images_per_second(self) -> float:
        """Training images a second."""
        return self.images / self.seconds if self.seconds else math.nan


def record(stage: Stage, account: Account, warmup: float, epochs: int, images: int) -> StageRecord:
    """Make a stage's record from its account."""
    passes = asdict(stage.passes) if stage.passes else None
    return StageRecord(
        stage.name,
        account.seconds,
        account.cpu_seconds,
        account.peak_memory_bytes,
        warmup,
        epochs,
        images,
        passes,
    )


def build_objective(stage: Train, device: str) -> nn.Module:
    """Return a stage's objective, built now if the stage gave a function."""
    made = stage.objective if isinstance(stage.objective, nn.Module) else stage.objective()
    return made.to(device)


def one_step(engine: Engine, objective: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch) -> Loss:
    """Forward, backward and step: the whole of what training repeats."""
    with engine.autocast():
        loss: Loss = objective(batch)
    if loss.total.requires_grad:
        torch.autograd.backward(loss.total)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss


def splits(count: int, batch_size: int) -> list[int]:
    """Cut an epoch into batches of nearly equal size, so that no odd last batch upsets BatchNorm."""
    batches = max(1, math.ceil(count / batch_size))
    return [count // batches + (i < count % batches) for i in range(batches)]


def warm_up(engine: Engine, stage: Train, objective: nn.Module, data: Images) -> float:
    """Pay one-off costs of the hardware on a throw-away copy and random images; return the seconds."""
    watch = Stopwatch(engine.device)
    with watch.account("warm-up") as account, torch.random.fork_rng():
        spare = copy.deepcopy(objective).train()
        real = engine.batch(data, torch.arange(min(len(data), stage.batch_size)), "warm-up", 0)
        batch = Batch(real.noise.uniform_like(real.images), real.labels, real.index, stage.epochs, real.noise)
        one_step(engine, spare, stage.optimizer(spare), batch)
    return account.seconds


def run_train(
    engine: Engine,
    stage: Train,
    data: Images,
    stopwatch: Stopwatch,
    log: Callable[[str, int, dict[str, float]], None] = lambda stage, epoch, metrics: None,
) -> tuple[StageRecord, nn.Module]:
    """Optimize a stage's objective over its epochs.

    Args:
        log: called after each epoch, outside the clock, with the stage, the epoch and mean metrics.

    Returns:
        The stage's record, and the objective with its final state.

    Raises:
        NonFiniteLossError: the loss became NaN or infinite; training stopped there.
    """
    objective = build_objective(stage, engine.device)
    warmup = warm_up(engine, stage, objective, data) if stage.epochs else 0.0
    optimizer = stage.optimizer(objective)
    rates = [group["lr"] for group in optimizer.param_groups]
    sizes = splits(len(data), stage.batch_size)
    objective.train()
    with (
        engine.reporter.bar(stage.name, stage.epochs * len(sizes)) as advance,
        torch.random.fork_rng(),
    ):
        for epoch in range(stage.epochs):
            order = torch.split(permutation(len(data), engine.seed, stage.name, epoch), sizes)
            sums: dict[str, Tensor] = {}
            with stopwatch.account(stage.name):
                for step, index in enumerate(order):
                    torch.manual_seed(key(engine.seed, stage.name, epoch, step))  # dropout and the like
                    for group, rate in zip(optimizer.param_groups, rates, strict=True):
                        group["lr"] = rate * stage.schedule(epoch + step / len(sizes))
                    batch = engine.batch(data, index, stage.name, epoch, stage.augment)
                    loss = one_step(engine, objective, optimizer, batch)
                    for name, value in {"loss": loss.total, **loss.metrics}.items():
                        sums[name] = sums.get(name, 0) + value.detach() * len(index)
                    look = engine.device == "cpu" or step % CHECK_EVERY == 0 or step + 1 == len(sizes)
                    if look and not math.isfinite(sums["loss"].item()):
                        raise NonFiniteLossError(
                            f"the loss of stage '{stage.name}' became {sums['loss'].item()} in epoch "
                            f"{epoch + 1}, step {step + 1}; lower the learning rate "
                            f"(now {optimizer.param_groups[0]['lr']:.3g})"
                        )
                    advance(1)
            log(stage.name, epoch, {name: value.item() / len(data) for name, value in sums.items()})
    account = stopwatch.accounts.setdefault(stage.name, Account())
    done = record(stage, account, warmup, stage.epochs, stage.epochs * len(data))
    measure(engine, stage, data, objective, done)
    return done, objective


def measure(engine: Engine, stage: Train, data: Images, objective: nn.Module, done: StageRecord) -> None:
    """Let a stage look at what it made, outside the clock, and keep its figures and flags."""
    if stage.measure is None:
        return
    with torch.no_grad(), eval_mode(objective):
        some = data.images(torch.arange(min(len(data), MEASURE_IMAGES)))
        done.metrics, done.flags = stage.measure(some)


def run_produce(
    engine: Engine, stage: Produce, data: Images, stopwatch: Stopwatch
) -> tuple[StageRecord, np.ndarray[Any, Any]]:
    """Compute a Produce stage's array over the training images, in their order.

    Returns:
        The stage's record and the array (N, ...), uint8 or float32.
    """
    parts = []
    with engine.reporter.bar(stage.name, len(data)) as advance, torch.random.fork_rng():
        for index in torch.split(torch.arange(len(data)), stage.batch_size):
            with stopwatch.account(stage.name):
                torch.manual_seed(key(engine.seed, stage.name, int(index[0])))
                parts.append(stage.function(engine.batch(data, index, stage.name, 0)).cpu().numpy())
            advance(len(index))
    array = np.concatenate(parts)
    return record(stage, stopwatch.accounts[stage.name], 0.0, 1, len(data)), array
