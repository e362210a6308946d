"""`--dry-run` of an experiment file: one line per request of the grid, and the cost of the whole grid."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from robobench.cli.dry_run import print_plan
from robobench.core.console import SilentReporter
from robobench.core.formatting import format_duration
from robobench.data.split import Dataset
from robobench.execution.runner import Runner
from robobench.planning.cost import forward_seconds_per_image, profile_stages
from robobench.planning.plan import Plan, TrainingJob
from robobench.store.artifacts import MANIFEST, Store

Tell = Callable[[str], None]


@dataclass
class _Line:
    """What one request adds to the requests above it."""

    trainings: int = 0
    cells: int = 0
    stored: int = 0  # trainings and cells that the store has
    training_seconds: float = 0.0
    attack_seconds: float = 0.0  # at most


def print_plans(
    prepared: Sequence[tuple[Plan, Dataset]], labels: Sequence[str], console: Console, progress: Tell
) -> None:
    """Print the plan of one request as `print_plan` does; for several, the grid and its cost.

    Args:
        prepared: plans with their data sets.
        labels: place of each plan in the grid.
        progress: called with what is being measured.
    """
    if len(prepared) == 1:
        print_plan(prepared[0][0], console, progress)
        return
    lines = _estimate(prepared, progress)
    training, attacks = (sum(getattr(line, f"{kind}_seconds") for line in lines) for kind in ("training", "attack"))
    counts = {name: sum(getattr(line, name) for line in lines) for name in ("trainings", "cells", "stored")}
    console.print(
        f"{len(lines)} requests: {counts['trainings']:,} trainings and {counts['cells']:,} cells, "
        f"{counts['stored']:,} of them in the store",
        highlight=False,
    )
    console.print(
        f"estimated on this machine: {format_duration(training + attacks)} in all (training "
        f"{format_duration(training)}, attacks {format_duration(attacks)} at most)",
        highlight=False,
    )
    table = Table(box=box.SIMPLE_HEAD, title="grid; each line without what the lines above share", title_justify="left")
    for column in ("request", "trainings", "cells", "in the store", "training", "attacks at most"):
        table.add_column(column, justify="left" if column == "request" else "right", overflow="fold")
    for label, line in zip(labels, lines, strict=True):
        times = format_duration(line.training_seconds), format_duration(line.attack_seconds)
        table.add_row(label or "-", str(line.trainings), str(line.cells), str(line.stored), *times)
    console.print(table)
    plans = [plan for plan, _ in prepared]
    for note in _distinct(note for plan in plans for note in plan.notes):
        console.print(f"note: {note}", highlight=False, markup=False)
    for missing in _distinct(line for plan in plans for line in plan.unavailable_data):
        console.print(f"missing: {missing}", highlight=False, markup=False)


def _estimate(prepared: Sequence[tuple[Plan, Dataset]], progress: Tell) -> list[_Line]:
    """Count trainings and cells, and measure a step of every kind of training and a pass of every network."""
    seen, seconds, forward = set[str](), dict[tuple[object, ...], float](), dict[tuple[object, ...], float]()
    lines = []
    for number, (plan, dataset) in enumerate(prepared, 1):
        torch.set_num_threads(plan.threads)
        store, line, evaluator = Store(plan.out), _Line(), Runner(plan, dataset, SilentReporter()).evaluator
        for job in plan.training_order():
            if not isinstance(job, TrainingJob) or job.key in seen:
                continue
            seen.add(job.key)
            line.trainings += 1
            if _is_stored(store, "model", job.folder):
                line.stored += 1
                continue
            kind = (job.config_digest, plan.device, plan.threads)
            if kind not in seconds:
                progress(f"measuring {job.name} on {job.spec.name} (request {number} of {len(prepared)})")
                seconds[kind] = sum(cost.seconds for cost in profile_stages(plan, job))
            line.training_seconds += seconds[kind]
        for cell in plan.cells():
            key = evaluator.key(cell)
            if key in seen:
                continue
            seen.add(key)
            line.cells += 1
            if _is_stored(store, "evaluations", key):
                line.stored += 1
                continue
            attacked = plan.attacked(cell)
            attack = f"{[model.key for model in attacked]} {cell.spec.recipe} {plan.examples}"
            if attack in seen:  # transfer examples are made once
                continue
            seen.add(attack)
            for model in attacked:
                network = (model.spec.name, plan.run.attack_resolution, plan.precision, plan.threads)
                if network not in forward:
                    progress(f"measuring attacks on {model.spec.name}")
                    forward[network] = forward_seconds_per_image(plan, model)
                line.attack_seconds += (cell.spec.attack.cost or 0.0) * forward[network] * plan.examples
        lines.append(line)
    return lines


def _is_stored(store: Store, kind: str, name: str) -> bool:
    """Return whether the store has an artifact. It is verified when it is used."""
    return (store.folder(kind, name) / MANIFEST).is_file()


def _distinct(lines: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(lines))
