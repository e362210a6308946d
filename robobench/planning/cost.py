"""Estimated cost of a plan: every stage is profiled for one step on random images, and scaled up.

Estimates are for this machine. Seconds scale with images, memory with the batch size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from robobench.attack_engine.gradient import input_gradient
from robobench.core.formatting import format_duration
from robobench.core.memory import is_out_of_memory
from robobench.core.module_state import attack_mode
from robobench.core.timing import Stopwatch, peak_memory, reset_peak_memory
from robobench.models.build import build_model
from robobench.planning.plan import NO_THREAT, Plan, PlannedModel, TrainingJob
from robobench.store.artifacts import Store, hash_recipe
from robobench.training.accumulation import one_step
from robobench.training.base import (
    DefenseSetup,
    FrozenModel,
    Precompute,
    PrecomputedArray,
    Stage,
    Train,
    check_kept_perturbations,
)
from robobench.training.context import TrainRuntime, build_objective
from robobench.training.image_state import MAX_FILES

PROFILE_PIXELS = 32 * 32 * 32  # of a profiled batch on a CPU: 32 images of 32 px; fewer would not fill a step
MIN_STEP_SECONDS = 1.0  # a shorter step is taken twice, since the first one includes one-off costs
BATCH_SIZES = tuple(64 * 2**n for n in range(7))  # up to 4,096
MIN_SPEEDUP = 1.1  # another batch size is suggested only if it is at least this much faster


class RandomImages:
    """Random images in place of a training set: uniform in [0, 1], every class in turn."""

    def __init__(self, count: int, resolution: int, num_classes: int, device: str) -> None:
        self.labels = torch.arange(count) % num_classes
        self.shape, self.device = (3, resolution, resolution), device

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, index: torch.Tensor) -> torch.Tensor:
        """Return images (B, 3, R, R)."""
        generator = torch.Generator().manual_seed(0)
        return torch.rand(len(index), *self.shape, generator=generator).to(self.device)


@dataclass(frozen=True)
class StageCost:
    """Estimated cost of a stage."""

    name: str
    epochs: int
    batch_size: int
    images: int  # over all epochs
    seconds_per_image: float
    memory_bytes: float  # at batch_size
    measured_bytes: int  # peak of the profiled step
    forward_equivalents: float | None  # per image, as declared
    key: str  # of the stage in the store
    disk_bytes: int = 0  # of the array of a Precompute stage, or of values per image while it trains, at most

    @property
    def seconds(self) -> float:
        """Seconds of the whole stage."""
        return self.images * self.seconds_per_image


def stage_forward_equivalents(stage: Stage) -> float | None:
    """Return the declared cost per image and epoch, of the model and its teachers; None if not declared."""
    if stage.passes is None:
        return None
    return stage.passes.forward_equivalents + stage.passes.teacher_forward_equivalents


def untrained_setup(plan: Plan, job: TrainingJob, device: str) -> DefenseSetup:
    """Return a training's setup with untrained models."""
    resolution = plan.run.attack_resolution
    return DefenseSetup(
        model=build_model(replace(job.spec, pretrained=False)).to(device),
        threat=job.threat or NO_THREAT,
        num_classes=job.spec.num_classes,
        image_shape=(3, resolution, resolution),
        train_size=plan.train_images,
        seed=job.seed,
        required_models={
            role: FrozenModel(build_model(replace(other.spec, pretrained=False)).to(device))
            for role, other in job.requires.items()
        },
    )


def forward_equivalents(plan: Plan, job: TrainingJob) -> float:
    """Return the declared cost of a training; nothing is run. A stage that declares nothing counts one per image."""
    with torch.device("meta"):  # tensors without values
        stages = job.defense(job.config).stages(untrained_setup(plan, job, "meta"))
    for stage in stages:
        check_kept_perturbations(stage, job.threat or NO_THREAT)
    epochs = [1 if isinstance(stage, Precompute) else stage.epochs for stage in stages]
    costs = [stage_forward_equivalents(stage) for stage in stages]
    return sum(n * plan.train_images * (1.0 if cost is None else cost) for n, cost in zip(epochs, costs, strict=True))


def profile_stages(plan: Plan, job: TrainingJob, batch_size: int | None = None) -> list[StageCost]:
    """Run one step of every stage of a training on random images, with untrained models.

    Args:
        batch_size: images in the step; time and memory are scaled to the stage's batch. None: few on a CPU; on a GPU,
            where a small step takes as long as a full one, the stage's own, halved until it fits.
    """
    resolution = plan.run.attack_resolution
    few = batch_size or max(2, PROFILE_PIXELS // resolution**2)
    images = RandomImages(max(few, plan.train_images), resolution, job.spec.num_classes, plan.device)
    runtime = TrainRuntime(plan.device, plan.precision, job.seed)
    setup = untrained_setup(plan, job, plan.device)
    full_batch = batch_size is None and plan.device.startswith("cuda")
    costs = []
    for stage in job.defense(job.config).stages(setup):
        batch = min(stage.batch_size, plan.train_images if full_batch else few)
        key = hash_recipe(job.stage_recipe(stage))
        if isinstance(stage, Precompute):
            costs.append(_profile_precompute(plan, setup, stage, images, batch, key))
            shape = len(images), *(stage.shape or setup.image_shape)
            zeros = np.broadcast_to(np.float32(0), shape)  # takes no memory on a CPU
            setup.precomputed[stage.name] = PrecomputedArray(zeros, plan.device)
        else:
            costs.append(_profile_train(plan, runtime, stage, images, batch, key, halve=full_batch))
    return costs


def _profile_precompute(
    plan: Plan, setup: DefenseSetup, stage: Precompute, images: RandomImages, batch: int, key: str
) -> StageCost:
    """Estimate a Precompute stage from its declared passes."""
    cost = stage_forward_equivalents(stage)
    forward = forward_seconds(setup.model.eval(), images.images(torch.arange(batch)), plan.device)
    return StageCost(
        name=stage.name,
        epochs=1,
        batch_size=stage.batch_size,
        images=plan.train_images,
        seconds_per_image=(cost or 1) * forward,
        memory_bytes=0.0,
        measured_bytes=0,
        forward_equivalents=cost,
        key=key,
        disk_bytes=4 * plan.train_images * math.prod(stage.shape or setup.image_shape),  # float32
    )


def _profile_train(
    plan: Plan, runtime: TrainRuntime, stage: Train, images: RandomImages, batch: int, key: str, *, halve: bool
) -> StageCost:
    """Estimate a Train stage from one step, with half the batch as long as memory runs out if `halve`."""
    while True:
        try:
            seconds, fixed, measured = _profile_step(runtime, stage, images, torch.arange(batch))
            break
        except Exception as err:
            if not halve or batch < 4 or not is_out_of_memory(err):
                raise
            batch //= 2
    return StageCost(
        name=stage.name,
        epochs=stage.epochs,
        batch_size=stage.batch_size,
        images=stage.epochs * plan.train_images,
        seconds_per_image=stage.replays * seconds / batch,
        memory_bytes=fixed + max(measured - fixed, 0) * stage.batch_size / batch,
        measured_bytes=measured,
        forward_equivalents=stage_forward_equivalents(stage),
        key=key,
        disk_bytes=MAX_FILES * plan.train_images * stage.image_state.bytes if stage.image_state else 0,
    )


def _profile_step(
    runtime: TrainRuntime, stage: Train, data: RandomImages, index: torch.Tensor
) -> tuple[float, int, int]:
    """Take a step; return seconds, bytes that do not grow with the batch, and the peak in bytes."""
    objective = build_objective(stage, runtime.device).train()
    optimizer = stage.optimizer(objective)
    batch = runtime.batch(data, index, stage.name, 0, stage.augment)
    reset_peak_memory(runtime.device)
    before = peak_memory(runtime.device)
    stopwatch = Stopwatch(runtime.device)
    with stopwatch.account("step") as account:
        one_step(runtime, objective, optimizer, batch, services=stage.services)
    seconds, peak = account.seconds, account.peak_memory_bytes
    if seconds < MIN_STEP_SECONDS or runtime.device.startswith("cuda"):  # a GPU's first step may select kernels
        with stopwatch.account("again") as account:
            one_step(runtime, objective, optimizer, batch, services=stage.services)
        seconds = min(seconds, account.seconds)
    trained = sum(p.numel() * p.element_size() for p in objective.parameters() if p.requires_grad)
    optimizer_state = sum(
        t.numel() * t.element_size()
        for state in optimizer.state.values()
        for t in state.values()
        if isinstance(t, torch.Tensor)
    )
    return seconds, before + trained + optimizer_state, peak


def remaining_seconds(store: Store, costs: list[StageCost], seen: set[str]) -> float:
    """Return estimated seconds of the stages that are neither stored nor counted before. Adds their keys to `seen`."""
    left = [c for c in costs if c.key not in seen and not store.folder("stages", c.key).is_dir()]
    seen.update(cost.key for cost in costs)
    return sum(cost.seconds for cost in left)


def forward_seconds(model: nn.Module, images: torch.Tensor, device: str) -> float:
    """Time a forward pass without gradients; return seconds per image."""
    with torch.no_grad():
        model(images)
        stopwatch = Stopwatch(device)
        with stopwatch.account("forward") as account:
            model(images)
    return account.seconds / len(images)


def forward_seconds_per_image(plan: Plan, model: PlannedModel) -> float:
    """Time a forward pass of a planned model: of a few images on a CPU, of an evaluation batch on a GPU."""
    network = build_model(replace(model.spec, pretrained=False)).to(plan.device).eval()
    batch = min(plan.run.eval_batch_size, plan.examples) if plan.device.startswith("cuda") else 8
    images = RandomImages(batch, plan.run.attack_resolution, 2, plan.device)
    return forward_seconds(network, images.images(torch.arange(batch)), plan.device)


def attack_step_seconds(model: nn.Module, images: torch.Tensor, device: str) -> float:
    """Time an attack step: a forward and a backward pass to the images."""
    stopwatch = Stopwatch(device)
    with stopwatch.account("step") as account:
        input_gradient(lambda adv: model(adv).logsumexp(1), images)
    return account.seconds


def batch_size_speeds(plan: Plan, model: PlannedModel, forward: float) -> dict[int, float]:
    """Measure attack steps at growing batch sizes; return images per second by `run.eval_batch_size`.

    It ends at the number of test images, when memory runs out, or when a step would take over MIN_STEP_SECONDS.

    Args:
        forward: seconds per image of a forward pass.
    """
    network = build_model(replace(model.spec, pretrained=False)).to(plan.device)
    data = RandomImages(plan.examples, plan.run.attack_resolution, 2, plan.device)
    own = min(plan.run.eval_batch_size, plan.examples)
    speeds, expected = dict[int, float](), 2 * forward
    for size in sorted({*(size for size in BATCH_SIZES if size <= plan.examples), own}):
        if size * expected > MIN_STEP_SECONDS:
            break
        images = data.images(torch.arange(size))
        try:
            with attack_mode(network):  # the first step includes one-off costs
                _, *seconds = (attack_step_seconds(network, images, plan.device) for _ in range(4))
        except Exception as err:
            if not is_out_of_memory(err):
                raise
            break
        expected = min(seconds) / size
        speeds[size] = 1 / expected
    return speeds


def suggest_batch_size(plan: Plan, model: PlannedModel, forward: float) -> str | None:
    """Return a note about the smallest batch size that is about as fast as any; None if the plan's own is.

    Args:
        forward: seconds per image of a forward pass.
    """
    speeds = batch_size_speeds(plan, model, forward)
    if not speeds:
        return None
    best = next(size for size, speed in speeds.items() if speed * 1.05 >= max(speeds.values()))
    used = speeds.get(min(plan.run.eval_batch_size, plan.examples), list(speeds.values())[-1])
    if speeds[best] < MIN_SPEEDUP * used:
        return None
    return (
        f"attacks on {model.spec.name} process {speeds[best]:,.0f} images per second and step with "
        f"--set run.eval_batch_size={best}, {used:,.0f} with {plan.run.eval_batch_size}"
    )


def training_seconds(plan: Plan, model: PlannedModel, seen: set[str]) -> float | None:
    """Return the estimated seconds of a training's remaining stages, and add these to `seen`; None if it is stored."""
    store = Store(plan.out)
    if not isinstance(model, TrainingJob) or store.find("model", model.folder):
        return None
    return remaining_seconds(store, profile_stages(plan, model), seen)


def cost_of_plans(plans: Sequence[tuple[Plan, tuple[str, ...]]]) -> list[str]:
    """Estimate this machine's time for several plans: one line per model, and the sum.

    Stored results cost nothing, and a stage that several models share is counted once.

    Args:
        plans: plans, each with the settings that tell its models apart.
    """
    forward: dict[str, float] = {}
    seen: set[str] = set()
    total, out = 0.0, list[str]()
    for plan, settings in plans:
        torch.set_num_threads(plan.threads)
        for model in plan.training_order():
            if model.key in seen:
                continue
            seen.add(model.key)
            seconds = training_seconds(plan, model, seen)
            total += seconds or 0.0
            name = f"{model.name} (seed {model.seed}) on {model.spec.name}, {model.dataset}"
            changed = f" with {', '.join(settings)}" if settings and model in plan.models else ""
            out.append(f"train {name}{changed}: {'in the store' if seconds is None else format_duration(seconds)}")
        for cell in plan.cells():
            attacked, spec = plan.attacked(cell), cell.spec
            key = f"{[model.key for model in attacked]} {spec.recipe}"
            if key not in seen and spec.attack.cost is not None:
                seen.add(key)
                for model in attacked:
                    name = model.spec.name
                    if name not in forward:
                        forward[name] = forward_seconds_per_image(plan, model)
                    total += plan.eot * spec.attack.cost * forward[name] * plan.examples
    out.append(f"estimated on this machine: {format_duration(total)} in all; attacks end sooner where they succeed")
    out += dict.fromkeys(f"missing: {line}" for plan, _ in plans for line in plan.unavailable_data)
    return out
