"""`--dry-run`: prints the plan with estimated time and memory."""

from __future__ import annotations

from dataclasses import asdict
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
from robobench.planning.plan import Plan, TrainingJob
from robobench.store.artifacts import Store


def print_plan(plan: Plan, console: Console) -> None:
    """Print everything a run would do: settings, stages, attacks, time, memory, and what is missing."""
    torch.set_num_threads(plan.threads)
    store = Store(plan.out)
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
    total, memory, disk, seen = 0.0, 0.0, list[int](), set[str]()
    for model in plan.training_order():
        stored = store.find("model", model.folder) is not None
        console.print(
            f"\n[bold]{model.name}[/bold] (seed {model.seed}) on {model.spec.name}"
            + (": in the store, reused" if stored else ""),
            highlight=False,
        )
        if not isinstance(model, TrainingJob):
            continue
        _print_values(console, model.name, asdict(model.config))
        if model.threat:
            console.print(f"  trained against {model.threat}", highlight=False)
        costs = profile_stages(plan, model)
        memory = max([memory, *(cost.memory_bytes for cost in costs)])
        disk += [cost.disk_bytes for cost in costs if not stored and cost.disk_bytes and cost.key not in seen]
        total += 0.0 if stored else remaining_seconds(store, costs, seen)
        console.print(_stage_table(costs))
    notes, forward = list(plan.notes), dict[str, float]()
    for model in {cell.model.key: cell.model for cell in plan.cells()}.values():
        if model.spec.name not in forward:
            forward[model.spec.name] = seconds = forward_seconds_per_image(plan, model)
            notes += filter(None, [suggest_batch_size(plan, model, seconds)])
    total += _print_attacks(plan, console, forward)
    console.print(
        f"\nestimated on this machine: {format_duration(total)} in all, {format_bytes(memory)} of memory at most"
        # The parts of an array are removed when it is complete.
        + (f", {format_bytes(sum(disk) + max(disk))} of disk at most for stored training images" if disk else ""),
        highlight=False,
    )
    for note in notes:
        console.print(f"note: {note}", highlight=False, markup=False)
    for missing in plan.unavailable_data:
        console.print(f"missing: {missing}", highlight=False, markup=False)


def _stage_table(costs: list[StageCost]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("stage", "epochs", "batch", "images seen", "forward passes per image", "time", "memory"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for cost in costs:
        table.add_row(
            cost.name,
            str(cost.epochs),
            str(cost.batch_size),
            f"{cost.images:,}",
            "-" if cost.forward_equivalents is None else f"{cost.forward_equivalents:g}",
            format_duration(cost.seconds),
            format_bytes(cost.memory_bytes) if cost.memory_bytes else "-",
        )
    return table


def _print_attacks(plan: Plan, console: Console, forward: dict[str, float]) -> float:
    """Print the attacks; return their seconds if no image was misclassified before the end."""
    cells, total = plan.cells(), 0.0
    names = dict.fromkeys(f"{cell.model.name} (seed {cell.model.seed})" for cell in cells)
    table = Table(box=box.SIMPLE_HEAD, title=f"attacks on {', '.join(names)}", title_justify="left")
    for column in ("attack", "radius", "protocols", "budget", "time at most"):
        table.add_column(column)
    slowest = max(forward.values(), default=0.0)
    for spec in plan.attacks:
        white_box = sum(cell.spec is spec and cell.protocol == "white-box" for cell in cells)
        seconds = (spec.attack.cost or 0.0) * slowest * plan.examples * (white_box + ("transfer" in spec.protocols))
        total += seconds
        protocols, budget = ", ".join(spec.protocols), spec.attack.budget.text
        table.add_row(spec.attack.name, str(spec.threat), protocols, budget, format_duration(seconds))
    console.print(table)
    return total


def _print_values(console: Console, name: str, values: dict[str, Any]) -> None:
    text = ", ".join(f"{k}={v:.6g}" if isinstance(v, float) else f"{k}={v}" for k, v in values.items())
    console.print(f"  {name}: {text}", highlight=False, markup=False, soft_wrap=True)
