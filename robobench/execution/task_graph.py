"""The task graph of a plan: one task per artifact, its dependencies and its estimated cost.

A task is named by the key of its artifact, so all processes that plan the same request have the same tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from robobench.execution.runner import Runner
from robobench.planning import cost
from robobench.planning.plan import AttackSpec, Cell, Plan, PlannedModel, TrainingJob


@dataclass(frozen=True, kw_only=True)
class Task:
    """An artifact to build, or to find in the store."""

    kind: str  # of the artifact: model, transfer, evaluations
    key: str  # of the artifact in the store
    group: str  # row of the progress table
    label: str  # text in that row
    depends_on: tuple[str, ...]  # names of tasks
    model: PlannedModel
    transfer: AttackSpec | None = None  # compute the transfer examples of this attack
    cell: Cell | None = None  # evaluate this cell; with neither, train the model

    @property
    def name(self) -> str:
        """Unique name of the task."""
        return f"{self.kind}/{self.key}"

    @property
    def is_training(self) -> bool:
        """Whether the task trains a model."""
        return self.kind == "model"


def build_task_graph(runner: Runner) -> dict[str, Task]:
    """Return the tasks of a plan by name, each after its dependencies."""
    plan, tasks = runner.plan, dict[str, Task]()
    cells = plan.cells()
    trained, examples = dict[str, str](), dict[int, str]()  # model key or attack number -> name of the task

    def add(task: Task) -> str:
        tasks[task.name] = task
        return task.name

    for model in plan.training_order():
        task = Task(
            kind="model",
            key=model.folder,
            group=_label(model),
            label="training",
            depends_on=tuple(dict.fromkeys(trained[other.key] for other in model.requires.values())),
            model=model,
        )
        trained[model.key] = add(task)
    for number, spec in enumerate(plan.attacks):
        if any(c.spec is spec and c.protocol == "transfer" for c in cells):
            task = Task(
                kind="transfer",
                key=runner.evaluator.transfer.key(spec),
                group="transfer examples",
                label=f"{spec.attack.name} {spec.threat}",
                depends_on=tuple(trained[source.key] for source in plan.transfer_sources),
                model=plan.transfer_sources[0],
                transfer=spec,
            )
            examples[number] = add(task)
    for cell in cells:
        needed = [trained[cell.model.key]]
        if cell.protocol == "transfer":
            needed.append(examples[plan.attacks.index(cell.spec)])
        task = Task(
            kind="evaluations",
            key=runner.evaluator.key(cell),
            group=_label(cell.model),
            label=f"{cell.spec.attack.name} {cell.spec.threat} {cell.protocol}",
            depends_on=tuple(needed),
            model=cell.model,
            cell=cell,
        )
        add(task)
    return tasks


def _label(model: PlannedModel) -> str:
    return f"{model.name} (seed {model.seed})"


def run_task(runner: Runner, task: Task) -> bool:
    """Run a task; return whether it succeeded. `runner.context.failures` holds earlier failures."""
    try:
        return _run_task(runner, task)
    finally:
        runner.context.tracking.close()


def _run_task(runner: Runner, task: Task) -> bool:
    if task.cell is not None:
        return runner.evaluator.evaluate(task.cell)["status"] == "ok"
    if task.transfer is not None:
        runner.evaluator.prepare_transfer(task.transfer)
        return all(source.key not in runner.context.failures for source in runner.plan.transfer_sources)
    runner.trainer.attempt(task.model)
    return task.model.key not in runner.context.failures


def task_forwards(plan: Plan, task: Task) -> float:
    """Estimate the cost of a task in forward passes. An attack of unknown cost counts as one per image."""
    if task.is_training:
        try:
            return cost.forward_equivalents(plan, task.model) if isinstance(task.model, TrainingJob) else 0.0
        except Exception:  # the training itself reports the error
            return 0.0
    if task.cell is not None and task.cell.protocol == "transfer":
        return float(plan.examples)
    spec = task.transfer or (task.cell.spec if task.cell else None)
    assert spec is not None
    return plan.examples * (spec.attack.cost or 1.0)


def critical_path_first(tasks: dict[str, Task], cost_of: Callable[[Task], float]) -> list[Task]:
    """Sort tasks by the cost of the longest chain that starts with them, largest first.

    A task comes after its dependencies.
    """
    chain = dict.fromkeys(tasks, 0.0)
    for name, task in reversed(tasks.items()):
        chain[name] += cost_of(task)
        for needed in task.depends_on:
            chain[needed] = max(chain[needed], chain[name])
    return sorted(tasks.values(), key=lambda task: -chain[task.name])
