"""What a plan will cost: every stage rehearsed for one step on random images, scaled up, and printed.

Estimates are of this machine. Seconds scale with images, memory with the batch; neither is a promise.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

from robobench import models
from robobench.api import Frozen, Produce, Produced, Setup, Stage, Train
from robobench.inner import frozen
from robobench.losses import input_gradient
from robobench.plan import NO_THREAT, Plan, Training
from robobench.progress import duration, size
from robobench.search import out_of_memory
from robobench.store import Store, key_of
from robobench.timing import Stopwatch, peak_memory, reset_peak_memory
from robobench.training import Engine, build_objective, one_step

REHEARSAL_PIXELS = 32 * 32 * 32  # on a CPU; small images are rehearsed 32 at a time: two would not fill a step
SHORT = 1.0  # seconds; a shorter step is taken twice, since the first one sets things up
CHUNKS = tuple(64 * 2**n for n in range(7))  # to 4,096
WORTH = 1.1  # times as many images a second, below which another chunk is not named


class RandomImages:
    """Stand-in for a training set: random images of the right shape, every class in turn."""

    def __init__(self, count: int, resolution: int, num_classes: int, device: str) -> None:
        self.labels = torch.arange(count) % num_classes
        self.shape, self.device = (3, resolution, resolution), device

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, index: torch.Tensor) -> torch.Tensor:
        """Return (B, 3, R, R) uniform in [0, 1]."""
        generator = torch.Generator().manual_seed(0)
        return torch.rand(len(index), *self.shape, generator=generator).to(self.device)


@dataclass(frozen=True)
class StageCost:
    """One rehearsed stage."""

    name: str
    epochs: int
    batch_size: int
    images: int  # over all epochs
    seconds_per_image: float
    memory_bytes: float  # at batch_size
    measured_bytes: int  # peak of the rehearsal itself
    units: float | None  # forward-equivalents per image, as declared
    key: str  # of the stage in the store
    disk_bytes: int = 0  # of the array that a Produce stage leaves, at most

    @property
    def seconds(self) -> float:
        """Whole stage."""
        return self.images * self.seconds_per_image


def forward_seconds(model: nn.Module, images: torch.Tensor, device: str) -> float:
    """Time a forward without gradients, per image."""
    with torch.no_grad():
        model(images)
        watch = Stopwatch(device)
        with watch.account("forward") as account:
            model(images)
    return account.seconds / len(images)


def blank(plan: Plan, training: Training, device: str) -> Setup:
    """Return what a training starts from, its networks and those it requires untrained."""
    resolution = plan.run.attack_resolution
    return Setup(
        model=models.build(replace(training.spec, pretrained=False)).to(device),
        threat=training.threat or NO_THREAT,
        config=training.config,
        num_classes=training.spec.num_classes,
        image_shape=(3, resolution, resolution),
        train_size=plan.train_images,
        seed=training.seed,
        required={
            role: Frozen(models.build(replace(t.spec, pretrained=False)).to(device))
            for role, t in training.requires.items()
        },
    )


def units_of(stage: Stage) -> float | None:
    """Forward-equivalents a training image and epoch, of the stage's network and its teachers, as declared."""
    return None if stage.passes is None else stage.passes.student_units + stage.passes.teacher_units


def forwards(plan: Plan, training: Training) -> float:
    """Forward-equivalents of a whole training, nothing run; a stage that declares none counts one an image."""
    with torch.device("meta"):  # networks without values: sizes are all that counts here
        stages = training.defense(training.config).stages(blank(plan, training, "meta"))
    epochs = [1 if isinstance(stage, Produce) else stage.epochs for stage in stages]
    return sum(n * plan.train_images * (units_of(stage) or 1.0) for n, stage in zip(epochs, stages, strict=True))


def rehearse(plan: Plan, training: Training, batch_size: int | None = None) -> list[StageCost]:
    """Run one step of every stage of a training on random images, required networks untrained.

    Args:
        batch_size: images in the step; time and memory are scaled to the stage's own batch. Where None: few on a CPU;
            on a GPU, where a small step takes as long as a full one, the stage's own, halved until it fits.
    """
    resolution = plan.run.attack_resolution
    few = batch_size or max(2, REHEARSAL_PIXELS // resolution**2)
    images = RandomImages(max(few, plan.train_images), resolution, training.spec.num_classes, plan.device)
    engine = Engine(plan.device, plan.precision, training.seed)
    setup = blank(plan, training, plan.device)
    costs = []
    array = 4 * plan.train_images * math.prod(setup.image_shape)  # an image in float32 for each
    for stage in training.defense(training.config).stages(setup):
        units = units_of(stage)
        own = batch_size is None and plan.device.startswith("cuda")
        batch = min(stage.batch_size, plan.train_images) if own else few
        if isinstance(stage, Produce):
            count, epochs = plan.train_images, 1
            some = images.images(torch.arange(batch))
            per_image = (units or 1) * forward_seconds(setup.model.eval(), some, plan.device)
            memory, measured = 0.0, 0
            zeros = np.broadcast_to(np.float32(0), (len(images), *setup.image_shape))  # takes none on a CPU
            setup.produced[stage.name] = Produced(zeros, plan.device)
        else:
            count, epochs = stage.epochs * plan.train_images, stage.epochs
            while True:
                try:
                    seconds, fixed, measured = _rehearse_step(engine, stage, images, torch.arange(batch))
                    break
                except Exception as err:
                    if not own or batch < 4 or not out_of_memory(err):
                        raise
                    batch //= 2
            per_image = seconds / batch
            memory = fixed + max(measured - fixed, 0) * stage.batch_size / batch
        key = key_of(training.stage_recipe(stage))
        disk = array if isinstance(stage, Produce) else 0
        cost = (stage.name, epochs, stage.batch_size, count, per_image, memory, measured, units, key, disk)
        costs.append(StageCost(*cost))
    return costs


def _rehearse_step(engine: Engine, stage: Train, data: RandomImages, index: torch.Tensor) -> tuple[float, int, int]:
    """Take a step; return seconds, bytes that do not grow with the batch, and the peak."""
    objective = build_objective(stage, engine.device).train()
    optimizer = stage.optimizer(objective)
    batch = engine.batch(data, index, stage.name, 0, stage.augment)
    reset_peak_memory(engine.device)
    before = peak_memory(engine.device)
    watch = Stopwatch(engine.device)
    with watch.account("step") as account:
        one_step(engine, objective, optimizer, batch)
    seconds, peak = account.seconds, account.peak_memory_bytes
    if seconds < SHORT or engine.device.startswith("cuda"):  # there the first one may load and choose kernels for long
        with watch.account("again") as account:
            one_step(engine, objective, optimizer, batch)
        seconds = min(seconds, account.seconds)
    trained = sum(p.numel() * p.element_size() for p in objective.parameters() if p.requires_grad)
    kept = sum(
        t.numel() * t.element_size()
        for state in optimizer.state.values()
        for t in state.values()
        if isinstance(t, torch.Tensor)
    )
    return seconds, before + trained + kept, peak


def unpaid(store: Store, costs: list[StageCost], seen: set[str]) -> float:
    """Add up the seconds of stages that neither the store has nor a training before has paid for (`seen`, added to)."""
    left = [c for c in costs if c.key not in seen and not store.folder("stages", c.key).is_dir()]
    seen.update(cost.key for cost in costs)
    return sum(cost.seconds for cost in left)


def one_forward(plan: Plan, training: Training) -> float:
    """Time a forward of a network, in seconds an image: of a few on a CPU, of a chunk on a GPU."""
    model = models.build(replace(training.spec, pretrained=False)).to(plan.device).eval()
    batch = min(plan.run.chunk, plan.examples) if plan.device.startswith("cuda") else 8
    images = RandomImages(batch, plan.run.attack_resolution, 2, plan.device)
    return forward_seconds(model, images.images(torch.arange(batch)), plan.device)


def step_seconds(model: nn.Module, images: torch.Tensor, device: str) -> float:
    """Time what an attack repeats, a forward and a backward to the images."""
    watch = Stopwatch(device)
    with watch.account("step") as account:
        input_gradient(lambda adv: model(adv).logsumexp(1), images)
    return account.seconds


def chunk_speeds(plan: Plan, training: Training, forward: float) -> dict[int, float]:
    """Measure how many images a second attacks take a step on, by how many are attacked together (`run.chunk`).

    Chunks double up to the test images, until memory runs out or a step would take longer than SHORT.

    Args:
        forward: seconds of a forward of the network, an image.
    """
    model = models.build(replace(training.spec, pretrained=False)).to(plan.device)
    data = RandomImages(plan.examples, plan.run.attack_resolution, 2, plan.device)
    speeds, expected = dict[int, float](), 2 * forward
    for chunk in sorted({*(c for c in CHUNKS if c <= plan.examples), min(plan.run.chunk, plan.examples)}):
        if chunk * expected > SHORT:
            break
        images = data.images(torch.arange(chunk))
        try:
            with frozen(model):
                _, *seconds = (step_seconds(model, images, plan.device) for _ in range(4))  # the first sets things up
        except Exception as err:
            if not out_of_memory(err):
                raise
            break
        expected = min(seconds) / chunk
        speeds[chunk] = 1 / expected
    return speeds


def better_chunk(plan: Plan, training: Training, forward: float) -> str | None:
    """Name the smallest chunk that is about as fast as any, where that is WORTH it."""
    speeds = chunk_speeds(plan, training, forward)
    if not speeds:
        return None
    best = next(chunk for chunk, speed in speeds.items() if speed * 1.05 >= max(speeds.values()))
    used = speeds.get(min(plan.run.chunk, plan.examples), list(speeds.values())[-1])
    if speeds[best] < WORTH * used:
        return None
    return (
        f"attacks on {training.spec.name} take a step on {speeds[best]:,.0f} images a second with "
        f"--set run.chunk={best}, on {used:,.0f} with {plan.run.chunk}"
    )


def print_plan(plan: Plan, console: Console) -> None:
    """Print everything a request would do: hyperparameters, stages, cells, time, memory, what is missing."""
    torch.set_num_threads(plan.threads)
    store = Store(plan.out)
    console.print(
        f"plan: preset {plan.preset}, {plan.dataset.name} (data {plan.data_digest}), "
        f"{plan.train_images} training and {plan.examples} test images",
        highlight=False,
    )
    console.print(
        f"device {plan.device}, precision {plan.precision}, {plan.threads} threads, store {plan.out}",
        highlight=False,
    )
    _values(console, "run", {k: v for k, v in asdict(plan.run).items() if k != "attacks"})
    total, memory, disk, seen = 0.0, 0.0, list[int](), set[str]()
    forward: dict[str, float] = {}
    for training in plan.order():
        there = store.find("model", training.folder) is not None
        console.print(
            f"\n[bold]{training.name}[/bold] (seed {training.seed}) on {training.spec.name}"
            + (": in the store, reused" if there else ""),
            highlight=False,
        )
        _values(console, training.name, asdict(training.config))
        if training.threat:
            console.print(f"  trained against {training.threat}", highlight=False)
        costs = rehearse(plan, training)
        table = Table(box=box.SIMPLE_HEAD)
        for column in ("stage", "epochs", "batch", "images seen", "forward units an image", "time", "memory"):
            table.add_column(column, justify="left" if column == "stage" else "right")
        for cost in costs:
            table.add_row(
                cost.name,
                str(cost.epochs),
                str(cost.batch_size),
                f"{cost.images:,}",
                "-" if cost.units is None else f"{cost.units:g}",
                duration(cost.seconds),
                size(cost.memory_bytes) if cost.memory_bytes else "-",
            )
            memory = max(memory, cost.memory_bytes)
        disk += [cost.disk_bytes for cost in costs if not there and cost.disk_bytes and cost.key not in seen]
        total += 0.0 if there else unpaid(store, costs, seen)
        console.print(table)
    notes = list(plan.notes)
    for training in {t.key: t for t, _, _ in plan.work()}.values():
        if training.spec.name not in forward:
            forward[training.spec.name] = one = one_forward(plan, training)
            notes += filter(None, [better_chunk(plan, training, one)])
    total += _print_cells(plan, console, forward)
    console.print(
        f"\nestimated on this machine: {duration(total)} in all, {size(memory)} of memory at most"
        # An array's parts go when it is whole.
        + (f", {size(sum(disk) + max(disk))} of disk at most for stored training images" if disk else ""),
        highlight=False,
    )
    for note in notes:
        console.print(f"note: {note}", highlight=False, markup=False)
    for missing in plan.missing:
        console.print(f"missing: {missing}", highlight=False, markup=False)


def _print_cells(plan: Plan, console: Console, forward: dict[str, float]) -> float:
    """Print the attacks; return their seconds if every image withstood everything."""
    work, total = plan.work(), 0.0
    names = dict.fromkeys(f"{t.name} (seed {t.seed})" for t, _, _ in work)
    table = Table(box=box.SIMPLE_HEAD, title=f"attacks on {', '.join(names)}", title_justify="left")
    for column in ("attack", "radius", "protocols", "budget", "time at most"):
        table.add_column(column)
    slowest = max(forward.values(), default=0.0)
    for cell in plan.cells:
        searches = sum(c is cell and p == "white-box" for _, c, p in work) + ("transfer" in cell.protocols)
        seconds = (cell.attack.cost or 0.0) * slowest * plan.examples * searches
        total += seconds
        protocols = ", ".join(cell.protocols)
        table.add_row(cell.attack.name, str(cell.threat), protocols, cell.attack.budget, duration(seconds))
    console.print(table)
    return total


def _values(console: Console, name: str, values: dict[str, Any]) -> None:
    text = ", ".join(f"{key}={_short(value)}" for key, value in values.items())
    console.print(f"  {name}: {text}", highlight=False, markup=False, soft_wrap=True)


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
