"""Runs the tasks of a plan as jobs of Slurm, through submitit.

Tasks with the same dependencies are one job array. Slurm starts them, so this process may leave: run the same command
again to come back. Imported only if it is used.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from robobench.core.console import Reporter
from robobench.distributed import signals
from robobench.errors import ExecutorError, Interrupted, RequestError
from robobench.execution.progress_table import ProgressTable
from robobench.execution.remote_task import record_lost
from robobench.execution.runner import Runner, Work
from robobench.execution.slurm_task import ATTEMPTS, SlurmTask, TaskState, died
from robobench.execution.task_graph import Task, build_task_graph, critical_path_first, run_task, task_forwards
from robobench.planning.plan import Plan
from robobench.planning.request import ExperimentConfig
from robobench.planning.validate import parse_slurm_options
from robobench.store.artifacts import hash_recipe, write_atomic

POLL_SECONDS = 2.0
QUEUE_SECONDS = 5.0  # between two questions to Slurm
MAX_REQUEUES = 100  # of a job that reaches its time limit; each continues from a checkpoint
DEFAULT_MINUTES = 60
DEFAULT_ARRAY_SIZE = 1001  # Slurm's own default of MaxArraySize


class Queue:
    """Submits calls as jobs. Dependencies and array limits are kept by Slurm; `cluster=local` starts processes here."""

    def __init__(self, folder: Path, options: dict[str, str], plan: Plan) -> None:
        import submitit

        options = dict(options)
        self.local = options.pop("cluster", "slurm") == "local"
        minutes = parse_minutes(options.pop("time", str(DEFAULT_MINUTES)))
        self.executor: Any
        self.jobs: dict[str, Any] = {}  # local ones by id
        self.places = max(1, (os.cpu_count() or 1) // plan.threads)  # for local ones
        if self.local:
            self.executor = submitit.LocalExecutor(folder, max_num_timeout=MAX_REQUEUES)
            self.executor.update_parameters(timeout_min=minutes)
            return
        if shutil.which("sbatch") is None:
            raise RequestError(
                "--executor slurm: no sbatch on this machine; run on a login node, or try `--slurm cluster=local`"
            )
        self.executor = submitit.SlurmExecutor(folder, max_num_timeout=MAX_REQUEUES)
        self.executor.update_parameters(job_name="robobench", time=minutes, cpus_per_task=plan.threads)
        if plan.device.startswith("cuda") and not any(name.startswith(("gpus", "gres")) for name in options):
            options["gpus-per-node"] = "1"
        for name in ("cpus-per-task", "array-parallelism"):  # srun of the job needs the first one too
            if name in options:
                self.executor.update_parameters(**{name.replace("-", "_"): int(options.pop(name))})
        self.options: dict[str, Any] = {"requeue": True, **options}

    def submit(self, calls: list[tuple[Any, ...]], after: list[str]) -> list[str]:
        """Submit calls of SlurmTask as one array, to start when the jobs `after` have ended; return their ids."""
        if not self.local:
            dependency = {"dependency": f"afterany:{':'.join(after)}"} if after else {}
            self.executor.update_parameters(additional_parameters={**self.options, **dependency})
        task = SlurmTask()
        try:
            jobs = (
                self._start_here(task, calls)
                if self.local
                else self.executor.map_array(task, *zip(*calls, strict=True))
            )
        except Exception as err:  # submitit raises types of its own and of subprocess
            why = " ".join(str(err).split())[-300:]
            raise ExecutorError(f"Slurm refuses the jobs ({why}); change --slurm") from None
        return [job.job_id for job in jobs]

    def _start_here(self, task: SlurmTask, calls: list[tuple[Any, ...]]) -> list[Any]:
        """Start processes on this machine, as many at once as it has cores for."""
        started = []
        for call in calls:
            while sum(not job.done() for job in self.jobs.values()) >= self.places:
                time.sleep(POLL_SECONDS / 4)
                signals.raise_if_stop_requested()
            job = self.executor.submit(task, *call)
            self.jobs[job.job_id] = job
            started.append(job)
        return started

    def array_limit(self) -> int:
        """Return the number of jobs that an array may have."""
        if self.local:
            return DEFAULT_ARRAY_SIZE
        found = re.search(r"MaxArraySize\s*=\s*(\d+)", _output("scontrol", "show", "config") or "")
        return int(found[1]) if found else DEFAULT_ARRAY_SIZE

    def alive(self, ids: set[str]) -> set[str]:
        """Return the jobs that wait or run. If Slurm does not answer, all do."""
        if self.local:
            return {number for number in ids if number in self.jobs and not self.jobs[number].done()}
        listed = _output("squeue", "--noheader", f"--user={getpass.getuser()}", "--array", "--format=%i")
        return ids if listed is None else ids & set(listed.split())


def _output(*command: str) -> str | None:
    """Return what a command prints, None if it fails."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        return done.stdout if done.returncode == 0 else None
    return None


def parse_minutes(text: str) -> int:
    """Return the minutes of a time limit in Slurm's forms, such as 90, 1:30:00 or 2-12; raises RequestError."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if match is None:
        raise RequestError(f"--slurm time={text} is no time limit; write minutes, H:M:S or D-H")
    days, *parts = match.groups()
    numbers = [int(part) for part in parts if part is not None]
    if days is not None or len(numbers) == 3:  # D-H, D-H:M, H:M:S
        hours, minutes = numbers[0], numbers[1] if len(numbers) > 1 else 0
    else:  # M, M:S
        hours, minutes = 0, numbers[0]
    return max(1, 24 * 60 * int(days or 0) + 60 * hours + minutes)


@contextmanager
def connect(
    request: ExperimentConfig, plan: Plan, reporter: Reporter
) -> Iterator[Callable[[list[Work]], list[set[str]]]]:
    """Yield a function that runs requests on Slurm, one after the other, and returns the keys of the records of each.

    Raises:
        RequestError: Slurm is not there, or does not take the options.
    """
    queue = Queue(plan.out / "artifacts" / "slurm", parse_slurm_options(request.slurm), plan)
    yield lambda work: [_submit_and_wait(one, queue) for one in work]


def _submit_and_wait(work: Work, queue: Queue) -> set[str]:
    """Run one request on Slurm."""
    work.runner.announce()
    return _Submission(work.runner, work.request, queue).run()


class _Submission:
    """The jobs of one request: those that another call submitted and that are still alive, and new ones."""

    def __init__(self, runner: Runner, request: ExperimentConfig, queue: Queue) -> None:
        self.runner, self.queue, self.plan = runner, queue, runner.plan
        device = torch.device(self.plan.device).type
        self.request = replace(request, device=device, precision=self.plan.precision, threads=self.plan.threads)
        tasks = build_task_graph(runner)
        self.tasks = {t.name: t for t in critical_path_first(tasks, partial(task_forwards, self.plan))}
        self.states = {name: TaskState(self.plan.out, name) for name in self.tasks}
        name = hash_recipe({"tasks": sorted(self.tasks)})
        self.file = self.plan.out / "artifacts" / "slurm" / f"jobs-{name}.json"  # task -> job
        self.jobs: dict[str, str] = {}  # task -> job
        self.suspects: set[str] = set()  # tasks that had neither a job nor an outcome when Slurm was asked last
        self.table = ProgressTable(self.tasks.values(), runner.context.store, runner.reporter)

    def run(self) -> set[str]:
        """Submit what is missing, and wait for all; return the keys of the records.

        Raises:
            ExecutorError: jobs ended before they began their task, or Slurm refuses them. Finished work is kept.
            Interrupted: this process leaves; the jobs go on.
        """
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with signals.handle_signals(verbose=False), signals.defer_signals():
            waiting = self._missing()
            self._submit(waiting)
            try:
                with self.table.shown():
                    self._wait(waiting)
            except Interrupted:
                ids = sorted({job.partition("_")[0] for job in self.jobs.values()})
                stop = "" if self.queue.local else f", or stop them with: scancel {' '.join(ids)}"
                self.runner.reporter.warning(
                    f"the jobs go on without this process; run the same command to come back{stop}"
                )
                raise
        for state in self.states.values():
            state.forget()
        self.file.unlink(missing_ok=True)
        return {task.key for task in self.tasks.values() if task.cell is not None}

    def _missing(self) -> list[Task]:
        """Return the tasks whose results are not in the store, dependencies first; note the jobs that are alive."""
        if self.file.is_file():
            known = {n: job for n, job in json.loads(self.file.read_text()).items() if n in self.tasks}
            alive = self.queue.alive({*known.values()})
            self.jobs = {name: job for name, job in known.items() if job in alive}
        if self.jobs:
            self.runner.reporter.info(f"back at {len(self.jobs)} jobs that were submitted before")
        else:
            for state in self.states.values():  # of an earlier run that ended: what failed is tried again
                state.forget()
        waiting = []
        finished = self.runner.evaluator.finished
        cells = {t.key: finished(t.cell, t.key) is not None for t in self.tasks.values() if t.cell is not None}
        for task in self.tasks.values():
            if task.cell is not None:
                done = cells[task.key]
            elif task.is_training:
                done = self.runner.context.find("model", task.key) is not None
            else:
                done = all(cells[t.key] for t in self.tasks.values() if task.name in t.depends_on)
            if done:
                self.table.finished(task, run_task(self.runner, task), 0.0)
            else:
                waiting.append(task)
        return waiting

    def _submit(self, tasks: list[Task]) -> None:
        """Submit tasks that have no job, as arrays of tasks with the same dependencies."""
        left = {t.name: t for t in tasks if t.name not in self.jobs and self.states[t.name].read()[1] is None}
        count, limit = len(left), self.queue.array_limit()
        while left:
            groups: dict[tuple[str, ...], list[Task]] = {}
            for task in left.values():
                if not any(name in left for name in task.depends_on):
                    after = tuple(self.jobs[name] for name in task.depends_on if name in self.jobs)
                    groups.setdefault(after, []).append(task)
            for after, group in groups.items():
                for begin in range(0, len(group), limit):
                    part = group[begin : begin + limit]
                    calls = [(self.request, os.getcwd(), task.name) for task in part]
                    ids = self.queue.submit(calls, [*after])
                    self.jobs |= {task.name: job for task, job in zip(part, ids, strict=True)}
                    write_atomic(self.file, json.dumps(self.jobs))
                for task in group:
                    del left[task.name]
        if count:
            self.runner.reporter.info(f"submitted {count} jobs; their logs are in {self.file.parent}")

    def _wait(self, tasks: list[Task]) -> None:
        """Wait for tasks, show their progress, and submit again those whose worker died."""
        waiting, asked = {task.name: task for task in tasks}, time.monotonic()
        while waiting:
            written = {path.name for path in self.states[next(iter(waiting))].path.parent.glob("*.json")}
            for name, task in [*waiting.items()]:
                if self.states[name].path.name in written and self._show_outcome(task):
                    del waiting[name]
            self.table.refresh()
            signals.raise_if_stop_requested()
            if waiting and time.monotonic() - asked >= QUEUE_SECONDS:
                asked = time.monotonic()
                self._revive(waiting)
            time.sleep(POLL_SECONDS if waiting else 0)

    def _show_outcome(self, task: Task) -> bool:
        """Show what a task reports if it has ended; return whether it has."""
        _, outcome = self.states[task.name].read()
        if outcome is None:
            return False
        for method, text in outcome.lines:
            if method == "error":
                raise ExecutorError(text)
            getattr(self.runner.reporter, method)(text)
        self.runner.context.failures.update(outcome.failures)
        if not outcome.ok and task.cell is not None and not self.runner.context.find("evaluations", task.key):
            self.runner.evaluator.evaluate(task.cell)  # its worker never came to record the reason
        self.table.finished(task, outcome.ok, outcome.seconds)
        return True

    def _revive(self, waiting: dict[str, Task]) -> None:
        """Submit tasks again whose worker died without an outcome; record the reason of those that died too often."""
        alive = self.queue.alive({self.jobs[name] for name in waiting if name in self.jobs})
        attempts = {n: self.states[n].read() for n in waiting if self.jobs.get(n) not in alive}
        dead = {name for name, (_, outcome) in attempts.items() if outcome is None}
        confirmed, self.suspects = dead & self.suspects, dead  # a file system may show an outcome late
        begun = [waiting[name] for name in waiting if name in confirmed and attempts[name][0]]
        if confirmed and not begun and not alive:
            raise ExecutorError(
                f"{len(confirmed)} jobs were cancelled or ended before their task began; see the logs in "
                f"'{self.file.parent}', and run the same command again"
            )
        for task in begun:
            self.jobs.pop(task.name, None)
            if attempts[task.name][0] >= ATTEMPTS:
                record_lost(self.runner, task, died(ATTEMPTS))
                del waiting[task.name]
                self.table.finished(task, False, 0.0)
        self._submit([task for task in begun if task.name in waiting])
