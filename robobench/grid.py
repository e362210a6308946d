"""A plan as a graph: a task for every artefact, with what it needs first and how much work it is.

A task is named by the key of its artefact, so that every process that plans the same request knows the same tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from robobench import estimate
from robobench.plan import Cell, Plan, Training
from robobench.runner import Runner


@dataclass(frozen=True, kw_only=True)
class Task:
    """One artefact to be made, or to be found in the store."""

    kind: str  # of the artefact in the store
    key: str  # under which the store has it, and locks it while it is made
    network: str  # whose row of the progress table it belongs to
    label: str  # what is done to that network
    needs: tuple[str, ...]  # names of tasks
    training: Training
    cell: Cell | None = None  # None: train the network
    protocol: str | None = None  # None, with a cell: make the transfer examples on the network

    @property
    def name(self) -> str:
        """Name of the task, among all of the plan."""
        return f"{self.kind}/{self.key}"


def graph(runner: Runner) -> dict[str, Task]:
    """Return the tasks of a plan by name, each once, what it needs before it."""
    plan, tasks = runner.plan, dict[str, Task]()
    work = plan.work()
    trained, examples = dict[str, str](), dict[int, str]()  # key of a training, number of a cell -> name of its task

    def add(task: Task) -> str:
        tasks[task.name] = task
        return task.name

    for training in plan.order():
        task = Task(
            kind="model",
            key=training.folder,
            network=_network(training),
            label="training",
            needs=tuple(dict.fromkeys(trained[other.key] for other in training.requires.values())),
            training=training,
        )
        trained[training.key] = add(task)
    for number, cell in enumerate(plan.cells):
        if plan.source is not None and any(c is cell and protocol == "transfer" for _, c, protocol in work):
            task = Task(
                kind="transfer",
                key=runner.transfer_key(cell),
                network="transfer examples",
                label=f"{cell.attack.name} {cell.threat}",
                needs=(trained[plan.source.key],),
                training=plan.source,
                cell=cell,
            )
            examples[number] = add(task)
    for training, cell, protocol in work:
        task = Task(
            kind="evaluations",
            key=runner.key(training, cell, protocol),
            network=_network(training),
            label=f"{cell.attack.name} {cell.threat} {protocol}",
            needs=(trained[training.key], *([examples[plan.cells.index(cell)]] if protocol == "transfer" else [])),
            training=training,
            cell=cell,
            protocol=protocol,
        )
        add(task)
    return tasks


def _network(training: Training) -> str:
    return f"{training.name} (seed {training.seed})"


def carry_out(runner: Runner, task: Task) -> bool:
    """Do a task; say whether it left what it should. What has failed before it stands in `runner.broken`."""
    if task.cell is None:
        runner.attempt(task.training)
        return task.training.key not in runner.broken
    if task.protocol is None:
        runner.make_transfer(task.cell)
        return task.training.key not in runner.broken
    return bool(runner.evaluate(task.training, task.cell, task.protocol)["status"] == "ok")


def forwards(plan: Plan, task: Task) -> float:
    """Estimate a task in forwards of its network; an attack of unknown cost counts one an image."""
    if task.cell is None:
        try:
            return estimate.forwards(plan, task.training)
        except Exception:  # a method that cannot begin says why when it is trained
            return 0.0
    return plan.examples * (1.0 if task.protocol == "transfer" else task.cell.attack.cost or 1.0)


def longest_first(tasks: dict[str, Task], work: Callable[[Task], float]) -> list[Task]:
    """Order tasks by the work of the longest chain each begins, so that no long one is left for the end.

    What a task needs stands before it.
    """
    chain = dict.fromkeys(tasks, 0.0)
    for name, task in reversed(tasks.items()):
        chain[name] += work(task)
        for need in task.needs:
            chain[need] = max(chain[need], chain[name])
    return sorted(tasks.values(), key=lambda task: -chain[task.name])
