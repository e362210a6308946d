"""`--dry-run`: prints the plan with estimated time and memory, the total first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from robobench.core.formatting import format_bytes, format_duration
from robobench.planning.cost import (
    StageCost,
    forward_seconds_per_image,
    profile_stages,
    remaining_seconds,
    suggest_batch_size,
)
from robobench.planning.plan import AttackSpec, Plan, PlannedModel, TrainingJob
from robobench.store.artifacts import Store
from robobench.training.config import recorded_values

FEW_EXAMPLES = 1000  # test images that a first look needs at most


@dataclass
class _Method:
    """The trainings of one defense with the same settings, which differ in their seed."""

    jobs: list[TrainingJob]
    costs: list[StageCost]
    stored: int  # how many of them are in the store
    seconds: float  # of all that are not


@dataclass
class _Estimate:
    methods: list[_Method] = field(default_factory=list)
    attacks: list[tuple[AttackSpec, float]] = field(default_factory=list)  # seconds at most
    notes: list[str] = field(default_factory=list)

    @property
    def training_seconds(self) -> float:
        return sum(method.seconds for method in self.methods)

    @property
    def attack_seconds(self) -> float:
        return sum(seconds for _, seconds in self.attacks)


def print_plan(plan: Plan, console: Console, progress: Callable[[str], None] = lambda text: None) -> None:
    """Print everything a run would do: total time, settings, stages, attacks, memory, and what is missing.

    Args:
        progress: called with what is being measured.
    """
    torch.set_num_threads(plan.threads)
    estimate = _estimate(plan, progress)
    _print_total(plan, estimate, console)
    console.print(
        f"plan: preset {plan.preset}, {plan.dataset.name} (data {plan.dataset.test_digest}), "
        f"{plan.train_images} training and {plan.examples} test images",
        highlight=False,
    )
    console.print(
        f"device {plan.device}, precision {plan.precision}, {plan.threads} threads, store {plan.out}",
        highlight=False,
    )
    _print_values(console, "run", {k: v for k, v in asdict(plan.run).items() if k != "attacks"})
    if estimate.methods:
        console.print(_stage_table(estimate.methods))
    for method in estimate.methods:
        job = method.jobs[0]
        threat = f"; trained against {job.threat}" if job.threat else ""
        _print_values(console, job.name, recorded_values(job.config), threat)
    _print_attacks(plan, estimate, console)
    for note in estimate.notes:
        console.print(f"note: {note}", highlight=False, markup=False)
    for missing in plan.unavailable_data:
        console.print(f"missing: {missing}", highlight=False, markup=False)


def _estimate(plan: Plan, progress: Callable[[str], None]) -> _Estimate:
    """Measure a step of every stage and a forward pass of every model."""
    store, seen, out = Store(plan.out), set[str](), _Estimate(notes=list(plan.notes))
    groups: dict[str, list[TrainingJob]] = {}
    for model in plan.training_order():
        if isinstance(model, TrainingJob):
            groups.setdefault(model.config_digest, []).append(model)
    for number, jobs in enumerate(groups.values(), 1):
        progress(f"measuring {jobs[0].name} ({number} of {len(groups)} methods)")
        costs = profile_stages(plan, jobs[0])
        stored = sum(store.find("model", job.folder) is not None for job in jobs)
        each = remaining_seconds(store, costs, seen)
        out.methods.append(_Method(jobs, costs, stored, each * (len(jobs) - stored)))
    forward: dict[str, float] = {}
    for model in {cell.model.key: cell.model for cell in plan.cells()}.values():
        if model.spec.name not in forward:
            progress(f"measuring attacks on {model.spec.name}")
            forward[model.spec.name] = seconds = forward_seconds_per_image(plan, model)
            out.notes += filter(None, [suggest_batch_size(plan, model, seconds)])
    slowest = max(forward.values(), default=0.0)
    cells = plan.cells()
    for spec in plan.attacks:
        white_box = sum(cell.spec is spec and cell.protocol == "white-box" for cell in cells)
        count = white_box + ("transfer" in spec.protocols)
        out.attacks.append((spec, plan.eot * (spec.attack.cost or 0.0) * slowest * plan.examples * count))
    return out


def _print_total(plan: Plan, estimate: _Estimate, console: Console) -> None:
    """Print the sums, and what would make the run cheaper."""
    training, attacks = estimate.training_seconds, estimate.attack_seconds
    memory = max((cost.memory_bytes for method in estimate.methods for cost in method.costs), default=0.0)
    disk = [c.disk_bytes for m in estimate.methods if m.stored < len(m.jobs) for c in m.costs if c.disk_bytes]
    console.print(
        f"estimated on this machine: {format_duration(training + attacks)} in all (training "
        f"{format_duration(training)}, attacks {format_duration(attacks)} at most), {format_bytes(memory)} of memory "
        "at most"
        # The parts of an array are removed when it is complete.
        + (f", {format_bytes(sum(disk) + max(disk))} of disk at most for images and values per image" if disk else ""),
        highlight=False,
    )
    for hint in _cheaper(plan, estimate):
        console.print(f"cheaper: {hint}", highlight=False, markup=False)
    console.print()


def _cheaper(plan: Plan, estimate: _Estimate) -> list[str]:
    """Return which flags would save most, with the seconds that remain."""
    training, attacks = estimate.training_seconds, estimate.attack_seconds
    out = []
    if attacks > training and plan.examples > FEW_EXAMPLES:
        less = format_duration(training + attacks * FEW_EXAMPLES / plan.examples)
        out.append(f"--examples {FEW_EXAMPLES} instead of {plan.examples} test images: {less} in all")
    by_name: dict[str, float] = {}
    for spec, seconds in estimate.attacks:
        by_name[spec.attack.name] = by_name.get(spec.attack.name, 0.0) + seconds
    if len(by_name) > 1 and attacks > training:
        name = max(by_name, key=lambda name: by_name[name])
        rest = ",".join(other for other in by_name if other != name)
        out.append(f"--attacks {rest} leaves out {name}: {format_duration(training + attacks - by_name[name])} in all")
    if training > attacks and estimate.methods:
        dearest = max(estimate.methods, key=lambda method: method.seconds)
        out.append(f"{dearest.jobs[0].name} takes {format_duration(dearest.seconds)}; --epochs N trains all shorter")
    return out


def _stage_table(methods: list[_Method]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="trainings", title_justify="left")
    for column in ("method", "stage", "epochs", "batch", "images seen", "forward passes per image", "time", "memory"):
        table.add_column(column, justify="left" if column in ("method", "stage") else "right")
    for method in methods:
        for number, cost in enumerate(method.costs):
            passes = "-" if cost.forward_equivalents is None else f"{cost.forward_equivalents:g}"
            table.add_row(
                "" if number else _name(method),
                cost.name,
                str(cost.epochs),
                str(cost.batch_size),
                f"{cost.images:,}",
                passes,
                format_duration(cost.seconds),
                format_bytes(cost.memory_bytes) if cost.memory_bytes else "-",
            )
    return table


def _name(method: _Method) -> str:
    """Return 'trades on resnet18', with ' x 3 seeds' and how many are in the store."""
    count, job = len(method.jobs), method.jobs[0]
    stored = f", {method.stored} in the store" if count > 1 else ", in the store, reused"
    return f"{job.name} on {job.spec.name}" + f" x {count} seeds" * (count > 1) + stored * bool(method.stored)


def _print_attacks(plan: Plan, estimate: _Estimate, console: Console) -> None:
    """Print the attacks and their seconds if no image is misclassified before the end."""
    models: dict[tuple[str, str], list[PlannedModel]] = {}
    for cell in plan.cells():
        same = models.setdefault((cell.model.name, cell.model.spec.name), [])
        if cell.model not in same:
            same.append(cell.model)
    names = [name + (f" x {len(same)} seeds" if len(same) > 1 else "") for (name, _), same in models.items()]
    table = Table(box=box.SIMPLE_HEAD, title=f"attacks on {', '.join(names)}", title_justify="left")
    for column in ("attack", "radius", "protocols", "budget", "time at most"):
        table.add_column(column)
    for spec, seconds in estimate.attacks:
        protocols, budget = ", ".join(spec.protocols), spec.attack.budget.text
        table.add_row(spec.attack.name, str(spec.threat), protocols, budget, format_duration(seconds))
    console.print(table)


def _print_values(console: Console, name: str, values: dict[str, Any], more: str = "") -> None:
    text = ", ".join(f"{k}={v:.6g}" if isinstance(v, float) else f"{k}={v}" for k, v in values.items())
    console.print(f"  {name}: {text}{more}", highlight=False, markup=False, soft_wrap=True)
