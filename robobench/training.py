"""Runs the stages of a defense: the core steps, the method computes.

What the clock sees is one block in each loop below; logging, measuring and saving stand outside it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from robobench import interrupts, processes
from robobench.api import Batch, Loss, Produce, Stage, Train
from robobench.architectures import Prepared
from robobench.augment import augment
from robobench.checkpoint import Array, Checkpoint, Position
from robobench.errors import NonFiniteLossError, OutOfMemoryError
from robobench.inner import eval_mode
from robobench.progress import Reporter
from robobench.randomness import Noise, key, permutation
from robobench.search import halvings, in_halves, out_of_memory
from robobench.timing import Account, Stopwatch

MEASURE_IMAGES = 256  # training images a stage's `measure` looks at
PART_BYTES = 2**30  # of a Produce stage's array that are held in memory at most before they are saved
CHECK_EVERY = 20  # steps between looks at the loss on a GPU, where a look waits for the device


class Images(Protocol):
    """The training images, wherever they are kept."""

    labels: Tensor  # (N,) int64, on the device where an index of these images is read

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
    compiled: bool = False

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of the run's precision: bf16 autocast or none."""
        return torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.precision == "bf16")

    def compile(self, module: nn.Module) -> None:
        """Compile the networks inside a module, in place, where the run asks for that; first passes pay for it."""
        if self.compiled:
            for part in module.modules():
                if isinstance(part, Prepared):
                    part.net.compile(dynamic=True)

    def batch(self, data: Images, index: Tensor, stage: str, epoch: int, how: str = "none") -> Batch:
        """Read and augment the images of an index; every draw is keyed by seed, stage, epoch and image."""
        noise = Noise.of(index.to(self.device), self.seed, stage, epoch)
        images = augment(data.images(index), noise.child("augment"), how)
        labels = data.labels[index].to(self.device)
        return Batch(images, labels, noise.index, epoch, noise)


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


def one_step(
    engine: Engine,
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    parts: int = 1,
    weight: float = 1.0,
) -> Loss:
    """Forward, backward and step: the whole of what training repeats.

    Args:
        parts: pieces the batch is cut into, their gradients added up, where the whole does not fit in memory.
        weight: of this batch's gradient, where it is one process's share of a larger batch.
    """
    pieces, whole = cut(batch, parts), len(batch.index)
    total, metrics = torch.zeros(()), dict[str, Tensor]()
    for piece in pieces:
        with engine.autocast():
            loss: Loss = objective(piece)
        share = len(piece.index) / whole
        moves = loss.total.requires_grad
        if moves:
            scale = weight * share
            torch.autograd.backward(loss.total if scale == 1 else loss.total * scale)
        if len(pieces) > 1:
            total = total.to(loss.total.device) + share * loss.total.detach()
            metrics |= {name: metrics.get(name, 0) + share * value.detach() for name, value in loss.metrics.items()}
    if moves:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss if len(pieces) == 1 else Loss(total, metrics)


def cut(batch: Batch, parts: int) -> list[Batch]:
    """Cut a batch into pieces of nearly equal size, in order."""
    if parts == 1:
        return [batch]
    begin, pieces = 0, []
    for size in splits(len(batch.index), math.ceil(len(batch.index) / parts)):
        rows = torch.arange(begin, begin + size, device=batch.index.device)
        picked = (batch.images[rows], batch.labels[rows], batch.index[rows])
        pieces.append(Batch(*picked, batch.epoch, batch.noise[rows]))
        begin += size
    return pieces


def more_parts(stage: Train, parts: int, batch_size: int, err: Exception) -> int:
    """Double the pieces of a batch after memory ran out.

    Raises:
        OutOfMemoryError: nothing smaller is left, or the stage's loss depends on the whole batch.
        Lost: memory ran out in one of several processes, which cannot cut a batch alone.
        Exception: `err` itself, where it is about something else.
    """
    if not out_of_memory(err):
        raise err
    if processes.count() > 1:
        why = f"stage '{stage.name}' ran out of memory; use more devices or lower --batch-size"
        raise processes.Lost(why, own=True) from err
    if stage.whole_batch:
        raise OutOfMemoryError(
            f"stage '{stage.name}' ran out of memory with batches of {batch_size}; its loss depends on the whole "
            "batch, which is therefore never cut: lower --batch-size or choose a smaller model"
        )
    if batch_size < 4 * parts:  # BatchNorm needs two images
        raise OutOfMemoryError(
            f"stage '{stage.name}' ran out of memory with {math.ceil(batch_size / parts)} images at once; "
            "choose a smaller model or another device"
        )
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return 2 * parts


def splits(count: int, batch_size: int) -> list[int]:
    """Cut an epoch into batches of nearly equal size, so that no odd last batch upsets BatchNorm."""
    batches = max(1, math.ceil(count / batch_size))
    return [count // batches + (i < count % batches) for i in range(batches)]


def warm_up(engine: Engine, stage: Train, objective: nn.Module, data: Images, parts: int = 1) -> float:
    """Pay one-off costs of the hardware on a throw-away copy and random images; return the seconds."""
    watch = Stopwatch(engine.device)
    with watch.account("warm-up") as account, torch.random.fork_rng():
        spare = copy.deepcopy(objective).train()
        engine.compile(spare)
        index = processes.share(torch.arange(min(len(data), stage.batch_size)))
        real = engine.batch(data, index, "warm-up", 0)
        batch = Batch(real.noise.uniform_like(real.images), real.labels, real.index, stage.epochs, real.noise)
        stateless = torch.optim.SGD(spare.parameters(), lr=0.0)  # the copy takes the place of the optimizer's state
        one_step(engine, spare, stateless, batch, parts)
    return account.seconds


def run_train(
    engine: Engine,
    stage: Train,
    data: Images,
    stopwatch: Stopwatch,
    log: Callable[[str, int, dict[str, float]], None] = lambda stage, epoch, metrics: None,
    checkpoint: Checkpoint | None = None,
    look: Callable[[int, bool], dict[str, float]] | None = None,
) -> tuple[StageRecord, nn.Module]:
    """Optimize a stage's objective over its epochs, or what is left of them, until its `watch` ends it.

    Where memory runs out, batches are cut into pieces whose gradients are added up; the record is then flagged
    "batch-cut-N". The first step that fails so may have shown BatchNorm a part of its batch twice.

    Several processes take their shares of the same batches in the same order. Gradients and metrics are averaged over
    the images of the whole batch; buffers, such as BatchNorm's statistics, are those of the first process.

    Args:
        log: called after each epoch, outside the clock, with the stage, the epoch and mean metrics; a resumed
            stage repeats the calls of the epochs that were finished before.
        look: called after each epoch, outside the clock, with whether it is the last; its figures join the epoch's
            metrics.
        checkpoint: where the stage is saved and brought back from; without one it begins anew each time.

    Returns:
        The stage's record, and the objective with its final state.

    Raises:
        NonFiniteLossError: the loss became NaN or infinite; training stopped there.
        OutOfMemoryError: memory ran out and the batch cannot be cut.
        Interrupted: a signal came; the step was finished and saved.
        ValueError: there are more processes than images in a batch.
    """
    objective = build_objective(stage, engine.device)
    engine.compile(objective)
    optimizer = stage.optimizer(objective)
    rates = [group["lr"] for group in optimizer.param_groups]
    sizes = splits(len(data), stage.batch_size)
    if sizes[-1] < processes.count():
        raise ValueError(f"stage '{stage.name}' has batches of {sizes[-1]} images for {processes.count()} processes")
    restored = checkpoint.restore(objective, optimizer) if checkpoint else None
    processes.spread(objective)
    at, stopwatch.accounts[stage.name] = restored or (Position(), Account())
    if restored:
        engine.reporter.note(f"  {stage.name}: goes on from epoch {at.epoch + 1}, step {at.step + 1}")
    for epoch, means in enumerate(at.lines):
        log(stage.name, epoch, means)
    while at.epoch < stage.epochs:
        try:
            warmup = warm_up(engine, stage, objective, data, at.parts)
            at.warmup = at.warmup if restored else warmup
            break
        except (MemoryError, RuntimeError) as err:
            at.parts = more_parts(stage, at.parts, sizes[0], err)
    objective.train()
    stepped = processes.wrap(objective)
    left = (stage.epochs - at.epoch) * len(sizes) - at.step
    with (
        engine.reporter.bar(stage.name, left) as advance,
        torch.random.fork_rng(),
        interrupts.deferred() if checkpoint else nullcontext(),
    ):
        for epoch in range(at.epoch, stage.epochs):
            shuffled = permutation(len(data), engine.seed, stage.name, epoch)
            order = torch.split(shuffled.to(data.labels.device), sizes)  # once: a copy in a step waits for the device
            while at.step < len(order):
                due = False
                with stopwatch.account(stage.name):
                    for step in range(at.step, len(order)):
                        for group, rate in zip(optimizer.param_groups, rates, strict=True):
                            group["lr"] = rate * stage.schedule(epoch + step / len(sizes))
                        _step(engine, stage, stepped, optimizer, data, order[step], epoch, step, at)
                        at.step = step + 1
                        visible = engine.device == "cpu" or step % CHECK_EVERY == 0 or at.step == len(sizes)
                        # Several processes ask each other, which waits for the device.
                        asked = visible or processes.count() == 1
                        due = checkpoint is not None and asked and checkpoint.due()
                        if (visible or due) and not math.isfinite(at.sums["loss"].item()):
                            raise NonFiniteLossError(
                                f"the loss of stage '{stage.name}' became {at.sums['loss'].item()} in epoch "
                                f"{epoch + 1}, step {step + 1}; lower the learning rate "
                                f"(now {optimizer.param_groups[0]['lr']:.3g})"
                            )
                        advance(1)
                        if due:
                            break
                _pool(stopwatch.accounts[stage.name])
                if checkpoint and due and at.step < len(order):
                    checkpoint.save(objective, optimizer, at, stopwatch.accounts[stage.name])
            means = {name: value.item() / len(data) for name, value in at.sums.items()}
            watched, ends = watch(engine, stage, objective, data, order[0], epoch, stopwatch)
            means |= watched
            means |= processes.from_first(partial(look, epoch, ends or epoch + 1 == stage.epochs)) if look else {}
            log(stage.name, epoch, means)
            at.end_epoch(means)
            if ends:  # unsaved: a run that is killed now finds the same end again
                break
            if checkpoint and checkpoint.due():
                checkpoint.save(objective, optimizer, at, stopwatch.accounts[stage.name])
    processes.spread(objective)
    done = record(stage, stopwatch.accounts[stage.name], at.warmup, at.epoch, at.epoch * len(data))
    measure(engine, stage, data, objective, done)
    if at.parts > 1:
        done.flags = [*done.flags, f"batch-cut-{at.parts}"]
    return done, objective


def _step(
    engine: Engine,
    stage: Train,
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Images,
    index: Tensor,
    epoch: int,
    step: int,
    at: Position,
) -> None:
    """Take one step on this process's share of a batch, in more pieces where memory runs out; add up its metrics."""
    mine = processes.share(index)
    own = (processes.rank(),) if processes.rank() else ()  # dropout and the like differ between processes
    while True:
        torch.manual_seed(key(engine.seed, stage.name, epoch, step, *own))
        try:
            batch = engine.batch(data, mine, stage.name, epoch, stage.augment)
            loss = one_step(engine, objective, optimizer, batch, at.parts, processes.weight(len(mine), len(index)))
            break
        except Exception as err:
            if processes.count() > 1:  # the others are in the middle of this step
                raise processes.Lost(err, own=not isinstance(err, RuntimeError) or out_of_memory(err)) from err
            optimizer.zero_grad(set_to_none=True)
            at.parts = more_parts(stage, at.parts, len(index), err)
            engine.reporter.warn(f"stage '{stage.name}' ran out of memory; its batches are now cut in {at.parts}")
    values = {"loss": loss.total, **loss.metrics}
    weighed = [value.detach() * len(mine) for value in values.values()]
    for name, value in zip(values, processes.totals(weighed), strict=True):
        at.sums[name] = at.sums.get(name, 0) + value


def _pool(account: Account) -> None:
    """Put the CPU seconds of all processes into the first one's account, and the highest peak of memory."""
    cpu_seconds = processes.total(account.cpu_seconds)
    account.cpu_seconds = cpu_seconds if processes.first() else 0.0
    account.peak_memory_bytes = int(processes.highest(account.peak_memory_bytes))


def watch(
    engine: Engine, stage: Train, objective: nn.Module, data: Images, index: Tensor, epoch: int, stopwatch: Stopwatch
) -> tuple[dict[str, float], bool]:
    """Show a stage its epoch's first batch once more, on its clock; return its figures and whether training ends."""
    if stage.watch is None:
        return {}, False
    with stopwatch.account(stage.name), engine.autocast():
        processes.spread(objective)
        seen = stage.watch(engine.batch(data, index, stage.name, epoch, stage.augment))
        processes.spread(objective)
    _pool(stopwatch.accounts[stage.name])
    return processes.from_first(lambda: seen)


def measure(engine: Engine, stage: Train, data: Images, objective: nn.Module, done: StageRecord) -> None:
    """Let a stage look at what it made, outside the clock, and keep its figures and flags."""
    if stage.measure is None:
        return
    with torch.no_grad(), eval_mode(objective):
        some = data.images(torch.arange(min(len(data), MEASURE_IMAGES)))
        done.metrics, done.flags = stage.measure(some)


def run_produce(
    engine: Engine, stage: Produce, data: Images, stopwatch: Stopwatch, checkpoint: Checkpoint | None = None
) -> tuple[StageRecord, list[Array]]:
    """Compute a Produce stage's array over the training images, in their order; parts saved before are kept.

    Several processes take the batches in turns, and each gets the whole array.

    Returns:
        The stage's record and the array (N, ...), uint8 or float32, in parts; those that are saved stay on disk.
    """
    parts, account = checkpoint.restore_parts() if checkpoint else ([], None)
    stopwatch.accounts[stage.name] = account or Account()
    saved = sum(map(len, parts))
    if saved:
        engine.reporter.note(f"  {stage.name}: goes on from image {saved + 1}")
    fresh: list[Array] = []  # not saved yet
    what = f"stage '{stage.name}'"
    with (
        halvings(lambda: engine.reporter.warn(f"{what} ran out of memory; its batches are halved")),
        engine.reporter.bar(stage.name, len(data) - saved) as advance,
        torch.random.fork_rng(),
        interrupts.deferred() if checkpoint else nullcontext(),
    ):

        def part(index: Tensor) -> Array:
            torch.manual_seed(key(engine.seed, stage.name, int(index[0])))
            return stage.function(engine.batch(data, index, stage.name, 0)).cpu().numpy()

        def compute(index: Tensor) -> Array:
            return np.concatenate(in_halves(what, part, index))

        left = [index for index in torch.split(torch.arange(len(data)), stage.batch_size) if int(index[0]) >= saved]
        computed = processes.each(left, compute)
        for index in left:
            with stopwatch.account(stage.name):
                fresh.append(next(computed))
            advance(len(index))
            if checkpoint and (checkpoint.due() or sum(piece.nbytes for piece in fresh) >= PART_BYTES):
                _pool(stopwatch.accounts[stage.name])
                parts.append(checkpoint.save_part(saved, fresh, stopwatch.accounts[stage.name]))
                fresh = []
                saved += len(parts[-1])
    _pool(stopwatch.accounts[stage.name])
    return record(stage, stopwatch.accounts[stage.name], 0.0, 1, len(data)), [*parts, *fresh]
