"""Runs the tasks of a plan on Ray, on several cores, GPUs or machines.

Ray schedules the tasks, starts each after the tasks it depends on, and retries the task of a killed worker. Results are
passed through the store, and a training resumes from its last checkpoint. Imported only if it is used.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from robobench.core.console import Reporter
from robobench.distributed import signals
from robobench.errors import ExecutorError, Interrupted, RequestError, StorageError
from robobench.execution.progress_table import ProgressTable
from robobench.execution.remote_task import Outcome, record_lost, run_planned_task
from robobench.execution.runner import Runner, Work
from robobench.execution.task_graph import Task, build_task_graph, critical_path_first, task_forwards
from robobench.planning.plan import Plan
from robobench.planning.request import ExperimentConfig

RETRIES = 3  # of a task whose worker died
POLL_SECONDS = 0.5
GRACE_SECONDS = 10.0  # for tasks to save their state when the run is stopped
ANSWER_SECONDS = 7.0  # within which the Ray at an address must answer
OBJECT_STORE_BYTES = 100 * 2**20  # of a local Ray; tasks pass only short texts
# Without this, Ray copies the working folder to each worker and starts it with `uv run`.
SETTINGS = {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_USAGE_STATS_ENABLED": "0"}


def run_remote_task(request: ExperimentConfig, place: str, name: str, *before: Outcome) -> Outcome:
    """Run one task of a request, after the tasks it depends on; see `run_planned_task`.

    Raises:
        KeyboardInterrupt: Ray asked to stop; unfinished work is saved.
    """
    with signals.handle_signals():
        try:
            return run_planned_task(request, place, name, *before)
        except Interrupted as err:
            if err.signum == signal.SIGINT:
                raise KeyboardInterrupt from None  # as Ray expects of a cancelled task
            os._exit(128 + err.signum)  # the machine shuts down: Ray retries the task elsewhere


@contextmanager
def connect(
    request: ExperimentConfig, plan: Plan, reporter: Reporter
) -> Iterator[Callable[[list[Work]], list[set[str]]]]:
    """Start Ray or connect to it; yield a function that runs requests and returns the keys of the records of each.

    Raises:
        RequestError: no Ray answers at the address, or no machine has the resources of a task.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    if request.address is not None:
        _check_address(request.address)
    import ray

    more: dict[str, Any] = {"object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    term = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            request.address or "local",
            log_to_driver=False,
            logging_level=logging.ERROR,
            **({} if request.address else more),
        )
    except Exception as err:  # Ray raises many types
        reason = str(err).strip().split("\n")[0]
        raise RequestError(
            f"Ray at '{request.address or 'this machine'}' does not accept this process: {reason}"
        ) from None
    finally:  # Ray replaces the handler
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, term)
    try:
        resources = _resources(request, plan, reporter)
        yield lambda work: _run_all(work, resources)
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Raise RequestError unless a Ray answers. `ray.init` would wait a minute and then exit this process."""
    refusal = RequestError(
        f"no Ray answers at --address '{address}'; start it with `ray start --head`, or leave the flag out"
    )
    try:
        check = "from ray.scripts.scripts import main; main()"
        command = [sys.executable, "-c", check, "health-check", "--address", address]
        done = subprocess.run(command, timeout=ANSWER_SECONDS, capture_output=True, text=True)
        if done.returncode and "AuthenticationError" not in done.stderr:  # a Ray that requires a token
            raise refusal
    except (OSError, subprocess.SubprocessError):
        raise refusal from None


def _resources(request: ExperimentConfig, plan: Plan, reporter: Reporter) -> dict[str, float]:
    """Return the resources of a task: its threads or, on GPUs, one core and a GPU or a fraction of it."""
    import ray

    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    where = f"at {request.address}" if request.address else "on this machine"
    resources: dict[str, float] = {}
    if plan.device.startswith("cuda"):
        resources = {"num_cpus": 1, "num_gpus": request.gpus_per_task or 1}
        if not any(machine.get("GPU", 0) >= resources["num_gpus"] for machine in machines):
            raise RequestError(f"Ray {where} has no GPU; use --device cpu, or start its nodes with `--num-gpus N`")
    else:
        resources = {"num_cpus": min(plan.threads, max(int(machine.get("CPU", 0)) for machine in machines))}
    names = {"num_cpus": "CPU", "num_gpus": "GPU"}
    parallel = sum(min(int(m.get(names[k], 0) // n) for k, n in resources.items()) for m in machines)
    each = " and ".join(f"{count:g} {names[kind]}" for kind, count in resources.items())
    hint = "; --threads 1 allows more" if parallel < 2 <= resources["num_cpus"] else ""
    reporter.info(f"Ray {where}: up to {parallel} tasks at once, each on {each}{hint}")
    return resources


def _run_all(work: list[Work], resources: dict[str, float]) -> list[set[str]]:
    """Submit the tasks of all requests to Ray, each once, and wait for them; return the keys of the records of each.

    Raises:
        ExecutorError, StorageError: no task can continue. Finished work is kept.
    """
    import ray

    graphs = [build_task_graph(one.runner) for one in work]
    tasks, owners = dict[str, Task](), dict[str, Work]()  # a task belongs to the first request that needs it
    for one, graph in zip(work, graphs, strict=True):
        one.runner.announce()
        for name, task in graph.items():
            tasks.setdefault(name, task)
            owners.setdefault(name, one)
    remote = ray.remote(**resources, max_retries=RETRIES)(run_remote_task)  # type: ignore[call-overload]
    refs: dict[str, Any] = {}
    for task in critical_path_first(tasks, lambda task: task_forwards(owners[task.name].runner.plan, task)):
        plan = owners[task.name].runner.plan
        device = torch.device(plan.device).type
        request = replace(owners[task.name].request, device=device, precision=plan.precision, threads=plan.threads)
        named = remote.options(name=f"{task.group}: {task.label}")
        refs[task.name] = named.remote(request, os.getcwd(), task.name, *(refs[name] for name in task.depends_on))
    waiting = {ref: tasks[name] for name, ref in refs.items()}
    lost: dict[str, str] = {}  # task name -> why Ray gave up on it
    reporter = work[0].runner.reporter
    table = ProgressTable(tasks.values(), work[0].runner.context.store, reporter)
    # An exception raised in a signal handler would disturb Ray.
    with signals.handle_signals(), signals.defer_signals():
        try:
            with table.shown():
                while waiting:
                    ready, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=POLL_SECONDS)
                    for ref in ready:
                        task = waiting.pop(ref)
                        outcome = _outcome(ref, task, owners[task.name].runner, lost)
                        for method, text in outcome.lines:
                            getattr(reporter, method)(text)
                        table.finished(task, outcome.ok, outcome.seconds)
                    table.refresh()
                    signals.raise_if_stop_requested()
        except BaseException:
            if waiting:
                for ref in reversed(waiting):
                    ray.cancel(ref)
                ray.wait(list(waiting), num_returns=len(waiting), timeout=GRACE_SECONDS)
            raise
    return [{task.key for task in graph.values() if task.cell is not None} for graph in graphs]


def _outcome(ref: Any, task: Task, runner: Runner, lost: dict[str, str]) -> Outcome:
    """Return the outcome of a task. If Ray gave up on it, the reason is recorded in the row."""
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
    record_lost(runner, task, why)
    return Outcome(False, 0.0, {}, [])
