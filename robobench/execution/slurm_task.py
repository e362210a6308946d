"""A task as a job of Slurm: it runs once, after what it depends on, and goes back into the queue on a signal.

The state of a task is a small file in the store, so the process that submitted the jobs may leave and come back.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from robobench.distributed import signals
from robobench.errors import ExecutorError, Interrupted, StorageError
from robobench.execution.remote_task import Outcome, plan_once, run_planned_task
from robobench.planning.request import ExperimentConfig
from robobench.store.artifacts import Store, wrap_write_errors, write_atomic

KIND = "tasks"  # of the state files in the store
ATTEMPTS = 4  # of a task whose worker dies without a result


def died(times: int) -> str:
    """Return the reason of a task whose workers gave no result."""
    return f"its worker died {times} times; was there enough memory and time?"


class TaskState:
    """The state file of a task: how often it was begun, and its outcome."""

    def __init__(self, root: Path, name: str) -> None:
        self.id = name.replace("/", "-")
        self.path = root / "artifacts" / KIND / f"{self.id}.json"

    def read(self) -> tuple[int, Outcome | None]:
        """Return the attempts and the outcome, None before the task has ended."""
        try:
            saved = json.loads(self.path.read_text())
        except FileNotFoundError:
            return 0, None
        outcome = saved["outcome"]
        if outcome is not None:
            outcome = Outcome(**{**outcome, "lines": [(method, text) for method, text in outcome["lines"]]})
        return saved["attempts"], outcome

    def write(self, attempts: int, outcome: Outcome | None = None) -> None:
        """Replace the state."""
        with wrap_write_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.path, json.dumps({"attempts": attempts, "outcome": outcome and asdict(outcome)}))

    def forget(self) -> None:
        """Remove the state."""
        self.path.unlink(missing_ok=True)


def run_once(request: ExperimentConfig, place: str, name: str) -> Outcome:
    """Return the outcome of a task, by running it if no process has. The tasks it depends on come first.

    A worker that is killed leaves no outcome. The next one that needs the task runs it again, from its checkpoint.
    """
    os.chdir(place)
    _, tasks = plan_once(request)
    before = [run_once(request, place, needed) for needed in tasks[name].depends_on] if name in tasks else []
    state = TaskState(request.out, name)
    with Store(request.out).lock(KIND, state.id):
        attempts, outcome = state.read()
        if outcome is not None:
            return outcome
        if attempts >= ATTEMPTS:
            key = tasks[name].model.key if tasks[name].is_training else tasks[name].key
            outcome = Outcome(False, 0.0, {key: died(attempts)}, [])
        else:
            state.write(attempts + 1)
            try:
                outcome = run_planned_task(request, place, name, *before)
            except Interrupted:  # work is saved
                state.write(attempts)
                raise
            except (ExecutorError, StorageError) as err:  # for the process that waits
                state.write(attempts + 1, Outcome(False, 0.0, {}, [("error", str(err))]))
                raise
        state.write(attempts + 1, outcome)
        return outcome


class SlurmTask:
    """The callable of a job. submitit calls `checkpoint` before it requeues the job."""

    def __call__(self, request: ExperimentConfig, place: str, name: str) -> None:
        """Run a task. On SIGUSR2, or SIGTERM of a preemption, work is saved and the job goes back into the queue."""
        try:
            with signals.handle_signals(False, (*signals.SIGNALS, signal.SIGUSR2)):
                run_once(request, place, name)
        except Interrupted as err:
            if err.signum == signal.SIGUSR2 or (err.signum == signal.SIGTERM and _is_preempted()):
                signal.raise_signal(signal.SIGUSR2)  # submitit's handler, which requeues
            sys.exit(128 + err.signum)

    def checkpoint(self, *arguments: Any) -> Any:
        """Return what the requeued job runs: the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *arguments)


def _is_preempted() -> bool:
    """Return whether the job of this process still runs for Slurm; a job that was cancelled does not."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return False
    try:
        command = ["squeue", "--noheader", "--jobs", job, "--format=%T"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip() == "RUNNING"
    except (OSError, subprocess.SubprocessError):
        return False
