"""Runs one task of a plan in another process, which plans the same request again. For Ray and Slurm."""

from __future__ import annotations

import functools
import os
import socket
import time
from dataclasses import dataclass

from robobench.core.console import Reporter
from robobench.errors import ExecutorError, RequestError
from robobench.execution.runner import Runner
from robobench.execution.task_graph import Task, build_task_graph, run_task
from robobench.planning.planner import prepare
from robobench.planning.request import ExperimentConfig


@dataclass(frozen=True)
class Outcome:
    """What a task returns. Its result is in the store."""

    ok: bool
    seconds: float
    failures: dict[str, str]  # of this task and the tasks before it: key -> reason
    lines: list[tuple[str, str]]  # method of Reporter, text


class BufferedReporter(Reporter):
    """Keep messages for the process that shows them. The log file of a training is written directly."""

    def __init__(self) -> None:
        super().__init__(-1)
        self.lines: list[tuple[str, str]] = []

    def info(self, text: str) -> None:
        """Keep a message."""
        self._keep("info", text)

    def debug(self, text: str) -> None:
        """Keep a detail."""
        self._keep("debug", text)

    def warning(self, text: str) -> None:
        """Keep a warning."""
        self._keep("warning", text)

    def _keep(self, method: str, text: str) -> None:
        self.lines.append((method, text))
        self.log(text)


@functools.lru_cache(maxsize=8)
def plan_once(request: ExperimentConfig) -> tuple[Runner, dict[str, Task]]:
    """Return the runner and tasks of a request, planned once per process."""
    runner = Runner(*prepare(request), BufferedReporter())
    return runner, build_task_graph(runner)


def run_planned_task(request: ExperimentConfig, place: str, name: str, *before: Outcome) -> Outcome:
    """Run one task of a request in the working directory `place`, after the tasks it depends on.

    Raises:
        ExecutorError: the folder, the store or the data are missing on this machine, or its plan has other keys.
        StorageError: the store cannot be written.
        Interrupted: a signal asked to stop; unfinished work is saved.
    """
    here = socket.gethostname()
    try:
        os.chdir(place)
        if not request.out.is_dir():
            raise ExecutorError(
                f"host '{here}' cannot see the store '{request.out}'; put it on a file system that all hosts share"
            )
        runner, tasks = plan_once(request)
        if name not in tasks:
            raise ExecutorError(
                f"host '{here}' computed different artifact keys; install the same versions, plug-ins and data"
            )
        failures = runner.context.failures = {key: why for outcome in before for key, why in outcome.failures.items()}
        lines = runner.reporter.lines = []  # type: ignore[attr-defined]
        begun = time.monotonic()
        ok = run_task(runner, tasks[name])
        return Outcome(ok, time.monotonic() - begun, failures, lines)
    except (RequestError, OSError) as err:
        raise ExecutorError(f"host '{here}' cannot run its tasks: {err}") from None


def record_lost(runner: Runner, task: Task, why: str) -> None:
    """Record in the row why the worker of a task gave no result."""
    runner.context.failures[task.model.key if task.is_training else task.key] = why
    if task.cell is not None:
        runner.evaluator.evaluate(task.cell)  # only records the reason
    else:
        runner.reporter.warning(f"{task.group}: {task.label}: {why}")
