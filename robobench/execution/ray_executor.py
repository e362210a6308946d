"""Runs the tasks of a plan on Ray, over the cores, GPUs and machines it has.

Ray places the tasks, holds each back until those it depends on are done, and retries the task of a killed worker.
Results travel through the store, and a training resumes from its last checkpoint. Imported only where it is used.
"""

from __future__ import annotations

import functools
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from robobench.core.console import Reporter
from robobench.distributed import signals
from robobench.errors import ExecutorError, Interrupted, RequestError, StorageError
from robobench.execution.progress_table import ProgressTable
from robobench.execution.runner import Runner
from robobench.execution.task_graph import Task, build_task_graph, critical_path_first, run_task, task_forwards
from robobench.planning.plan import Plan
from robobench.planning.planner import prepare
from robobench.planning.request import ExperimentConfig

RETRIES = 3  # of a task whose worker died

POLL_SECONDS = 0.5

GRACE_SECONDS = 10.0  # for tasks to save their state when all are to stop

ANSWER_SECONDS = 7.0  # in which a Ray at an address must answer

OBJECT_STORE = 100 * 2**20  # bytes of a local Ray; tasks pass only short texts

# Ray would copy the working folder to each worker and start it under `uv run`; robobench runs where it is installed.
SETTINGS = {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_USAGE_STATS_ENABLED": "0"}


@dataclass(frozen=True)
class Outcome:
    """What a task returns; its result is in the store."""

    ok: bool
    seconds: float
    failures: dict[str, str]  # of this task and those before it: key -> reason
    lines: list[tuple[str, str]]  # method of Reporter, text


class BufferedReporter(Reporter):
    """Keep messages for the process that shows them; the log of a training is written here."""

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


@functools.lru_cache(maxsize=1)
def _planned(request: ExperimentConfig) -> tuple[Runner, dict[str, Task]]:
    """Plan a request once per process."""
    runner = Runner(*prepare(request), BufferedReporter())
    return runner, build_task_graph(runner)


def run_remote_task(request: ExperimentConfig, place: str, name: str, *before: Outcome) -> Outcome:
    """Run one task of a request, in the folder `place`, after those it depends on.

    Raises:
        ExecutorError: this machine lacks the folder, the store or the data, or its plan has other keys.
        StorageError: the store cannot be written.
        KeyboardInterrupt: Ray asked to stop; unfinished work is saved.
    """
    here = socket.gethostname()
    with signals.handle_signals():
        try:
            os.chdir(place)
            if not request.out.is_dir():
                raise ExecutorError(
                    f"host '{here}' cannot see the store '{request.out}'; put it on a file system that all hosts share"
                )
            runner, tasks = _planned(request)
            if name not in tasks:
                raise ExecutorError(
                    f"host '{here}' computed different artifact keys; install the same versions, plug-ins and data"
                )
            failures = runner.context.failures = {
                key: why for outcome in before for key, why in outcome.failures.items()
            }
            lines = runner.reporter.lines = []  # type: ignore[attr-defined]
            begun = time.monotonic()
            ok = run_task(runner, tasks[name])
            return Outcome(ok, time.monotonic() - begun, failures, lines)
        except (RequestError, OSError) as err:
            raise ExecutorError(f"host '{here}' cannot run its tasks: {err}") from None
        except Interrupted as err:
            if err.signum == signal.SIGINT:
                raise KeyboardInterrupt from None  # how Ray expects a cancelled task to end
            os._exit(128 + err.signum)  # the machine goes down: Ray runs the task again elsewhere


@contextmanager
def connect(request: ExperimentConfig, plan: Plan, reporter: Reporter) -> Iterator[Callable[[Runner], set[str]]]:
    """Start or join Ray; yield the function that carries out a plan and returns the records' keys.

    Raises:
        RequestError: nobody answers at the address, or no machine there has what a task needs.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    if request.address is not None:
        _check_address(request.address)
    import ray

    more: dict[str, Any] = {"object_store_memory": OBJECT_STORE, "include_dashboard": False}
    term = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            request.address or "local",
            log_to_driver=False,
            logging_level=logging.ERROR,
            **({} if request.address else more),
        )
    except Exception as err:  # of many classes
        reason = str(err).strip().split("\n")[0]
        raise RequestError(
            f"Ray at '{request.address or 'this machine'}' does not accept this process: {reason}"
        ) from None
    finally:  # Ray sets a handler of its own
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, term)
    try:
        needs = _resources(request, plan, reporter)
        yield lambda runner: _run_all(runner, request, needs)
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Raise RequestError unless a Ray answers. Connecting directly would wait a minute and then end this process."""
    refusal = RequestError(
        f"no Ray answers at --address '{address}'; start one there with `ray start --head`, or leave the flag out"
    )
    try:
        check = "from ray.scripts.scripts import main; main()"
        command = [sys.executable, "-c", check, "health-check", "--address", address]
        done = subprocess.run(command, timeout=ANSWER_SECONDS, capture_output=True, text=True)
        if done.returncode and "AuthenticationError" not in done.stderr:  # a Ray that asks for a token is there
            raise refusal
    except (OSError, subprocess.SubprocessError):
        raise refusal from None


def _resources(request: ExperimentConfig, plan: Plan, reporter: Reporter) -> dict[str, float]:
    """Return the resources of a task: its threads, or one core with a GPU or a share of one."""
    import ray

    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    where = f"at {request.address}" if request.address else "on this machine"
    needs: dict[str, float] = {}
    if plan.device.startswith("cuda"):
        needs = {"num_cpus": 1, "num_gpus": request.gpus_per_task or 1}
        if not any(machine.get("GPU", 0) >= needs["num_gpus"] for machine in machines):
            raise RequestError(f"Ray {where} has no GPU; use --device cpu, or start its nodes with `--num-gpus N`")
    else:
        needs = {"num_cpus": min(plan.threads, max(int(machine.get("CPU", 0)) for machine in machines))}
    names = {"num_cpus": "CPU", "num_gpus": "GPU"}
    room = sum(min(int(m.get(names[k], 0) // n) for k, n in needs.items()) for m in machines)
    each = " and ".join(f"{count:g} {names[kind]}" for kind, count in needs.items())
    hint = "; --threads 1 makes room for more" if room < 2 <= needs["num_cpus"] else ""
    reporter.info(f"Ray {where}: up to {room} tasks at once, each on {each}{hint}")
    return needs


def _run_all(runner: Runner, request: ExperimentConfig, needs: dict[str, float]) -> set[str]:
    """Submit every task to Ray and wait for them; return the keys of the records.

    Raises:
        ExecutorError, StorageError: no task can continue. Finished work is kept.
    """
    import ray

    plan, tasks = runner.plan, build_task_graph(runner)
    device = torch.device(plan.device).type
    request = replace(request, device=device, precision=plan.precision, threads=plan.threads)
    remote = ray.remote(**needs, max_retries=RETRIES)(run_remote_task)  # type: ignore[call-overload]
    refs: dict[str, Any] = {}
    for task in critical_path_first(tasks, functools.partial(task_forwards, plan)):
        named = remote.options(name=f"{task.group}: {task.label}")
        refs[task.name] = named.remote(request, os.getcwd(), task.name, *(refs[name] for name in task.depends_on))
    waiting = {ref: tasks[name] for name, ref in refs.items()}
    lost: dict[str, str] = {}  # task name -> why Ray gave it up
    table = ProgressTable(tasks.values(), runner.context.store, runner.reporter)
    with (
        signals.handle_signals(),
        signals.defer_signals(),
    ):  # an exception raised in a signal handler would disturb Ray
        try:
            with table.shown():
                while waiting:
                    ready, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=POLL_SECONDS)
                    for ref in ready:
                        task = waiting.pop(ref)
                        outcome = _outcome(ref, task, runner, lost)
                        for method, text in outcome.lines:
                            getattr(runner.reporter, method)(text)
                        table.finished(task, outcome.ok, outcome.seconds)
                    table.refresh()
                    signals.raise_if_stop_requested()
        except BaseException:
            if waiting:
                for ref in reversed(waiting):
                    ray.cancel(ref)
                ray.wait(list(waiting), num_returns=len(waiting), timeout=GRACE_SECONDS)
            raise
    return {task.key for task in tasks.values() if task.cell is not None}


def _outcome(ref: Any, task: Task, runner: Runner, lost: dict[str, str]) -> Outcome:
    """Return what a task returned. If Ray gave it up, the reason becomes the row's."""
    import ray
    from ray.exceptions import RayError, RayTaskError, TaskCancelledError

    why = next((lost[name] for name in task.depends_on if name in lost), None)
    if why is None:
        try:
            return ray.get(ref)  # type: ignore[no-any-return]
        except TaskCancelledError:
            raise ExecutorError(f"the task '{task.group}: {task.label}' was cancelled") from None
        except RayTaskError as err:
            if isinstance(err.cause, (StorageError, ExecutorError)):
                raise err.cause from None
            raise
        except RayError as err:
            why = f"its worker died {RETRIES + 1} times ({type(err).__name__}); was there enough memory?"
    lost[task.name] = why
    runner.context.failures[task.model.key if task.is_training else task.key] = why
    if task.cell is not None:
        runner.evaluator.evaluate(task.cell)  # records the reason and does nothing else
    else:
        runner.reporter.warning(f"{task.group}: {task.label}: {why}")
    return Outcome(False, 0.0, {}, [])
