"""The tasks of a plan on Ray, over the cores, GPUs and machines it has.

Ray places the tasks, holds each back until what it needs is there, and runs the task of a killed worker again. The
store answers what exists, and lets a training go on from its last checkpoint. Imported where a request asks for it.
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

from robobench import grid, interrupts
from robobench.errors import ExecutorError, RequestError, StorageError
from robobench.grid import Task
from robobench.interrupts import Interrupted
from robobench.plan import Plan
from robobench.planner import make_plan
from robobench.progress import Reporter
from robobench.request import Request
from robobench.runner import Runner
from robobench.taskboard import Board

RETRIES = 3  # times a task whose worker died is run again
POLL_SECONDS = 0.5
GRACE_SECONDS = 10.0  # for tasks to save what they have when all are to stop
ANSWER_SECONDS = 7.0  # for the Ray at an address
OBJECT_STORE = 100 * 2**20  # bytes of a local Ray; results travel through the store, tasks pass only words

# Ray would copy the working folder to each worker and start it under `uv run`; ours run where they are installed.
SETTINGS = {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_USAGE_STATS_ENABLED": "0"}


@dataclass(frozen=True)
class Outcome:
    """What a task passes on; its result is in the store."""

    good: bool
    seconds: float
    broken: dict[str, str]  # of this task and those before it: key -> why there is no such result
    lines: list[tuple[str, str]]  # what was said, and how


class Echo(Reporter):
    """Keeps what is said for the process that shows it; the log of a training is written here."""

    def __init__(self) -> None:
        super().__init__(-1)
        self.lines: list[tuple[str, str]] = []

    def note(self, text: str) -> None:
        """Keep a note."""
        self._keep("note", text)

    def detail(self, text: str) -> None:
        """Keep a detail."""
        self._keep("detail", text)

    def warn(self, text: str) -> None:
        """Keep a warning."""
        self._keep("warn", text)

    def _keep(self, how: str, text: str) -> None:
        self.lines.append((how, text))
        self.log(text)


# --- in a worker --------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def _planned(request: Request) -> tuple[Runner, dict[str, Task]]:
    """Plan a request once a process."""
    runner = Runner(make_plan(request), Echo())
    return runner, grid.graph(runner)


def carry_out(request: Request, place: str, name: str, *before: Outcome) -> Outcome:
    """Do one task of a request, in the folder `place`, after those it needs.

    Raises:
        ExecutorError: this machine lacks the folder, the store or the data, or its plan has other keys.
        StorageError: the store cannot be written.
        KeyboardInterrupt: Ray asked to stop; what was begun is saved.
    """
    here = socket.gethostname()
    with interrupts.handled():
        try:
            os.chdir(place)
            if not request.out.is_dir():
                raise ExecutorError(f"'{here}' does not see the store '{request.out}'; put it where all machines do")
            runner, tasks = _planned(request)
            if name not in tasks:
                raise ExecutorError(f"'{here}' plans other keys; give it the same versions, plug-ins and data")
            runner.broken = {key: why for outcome in before for key, why in outcome.broken.items()}
            lines = runner.reporter.lines = []  # type: ignore[attr-defined]
            begun = time.monotonic()
            good = grid.carry_out(runner, tasks[name])
            return Outcome(good, time.monotonic() - begun, runner.broken, lines)
        except (RequestError, OSError) as err:
            raise ExecutorError(f"'{here}' cannot do its part: {err}") from None
        except Interrupted as err:
            if err.signum == signal.SIGINT:
                raise KeyboardInterrupt from None  # Ray's own word for a cancelled task
            os._exit(128 + err.signum)  # the machine goes down: Ray runs the task again elsewhere


# --- in the process that was asked ----------------------------------------------------------------


@contextmanager
def connected(request: Request, plan: Plan, reporter: Reporter) -> Iterator[Callable[[Runner], set[str]]]:
    """Start a local Ray or join a running one; yield what carries a plan out and returns its records' keys.

    Raises:
        RequestError: nobody answers at the address, or no machine there has what a task needs.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    if request.address is not None:
        _answers(request.address)
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
        said = str(err).strip().split("\n")[0]
        raise RequestError(f"Ray at '{request.address or 'this machine'}' does not take this process: {said}") from None
    finally:  # Ray sets a handler of its own
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, term)
    try:
        needs = _needs(request, plan, reporter)
        yield lambda runner: _carry_out_all(runner, request, needs)
    finally:
        ray.shutdown()


def _answers(address: str) -> None:
    """Raise RequestError unless a Ray answers; connecting outright would wait for a minute, then end this process."""
    refusal = RequestError(
        f"no Ray answers at --address '{address}'; start one there with `ray start --head`, or leave the flag out"
    )
    try:
        check = "from ray.scripts.scripts import main; main()"
        command = [sys.executable, "-c", check, "health-check", "--address", address]
        done = subprocess.run(command, timeout=ANSWER_SECONDS, capture_output=True, text=True)
        if done.returncode and "AuthenticationError" not in done.stderr:  # asking for a token is an answer
            raise refusal
    except (OSError, subprocess.SubprocessError):
        raise refusal from None


def _needs(request: Request, plan: Plan, reporter: Reporter) -> dict[str, float]:
    """Return what a task takes of a machine: its threads, or one core beside a GPU or a share of one."""
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
    reporter.note(f"Ray {where}: up to {room} tasks at once, each on {each}{hint}")
    return needs


def _carry_out_all(runner: Runner, request: Request, needs: dict[str, float]) -> set[str]:
    """Hand every task to Ray and watch them; return the keys of the records.

    Raises:
        ExecutorError, StorageError: no task can go on; what is finished stays.
    """
    import ray

    plan, tasks = runner.plan, grid.graph(runner)
    device = torch.device(plan.device).type
    settled = replace(request, device=device, precision=plan.precision, threads=plan.threads)
    remote = ray.remote(**needs, max_retries=RETRIES)(carry_out)  # type: ignore[call-overload]
    refs: dict[str, Any] = {}
    for task in grid.longest_first(tasks, functools.partial(grid.forwards, plan)):
        named = remote.options(name=f"{task.network}: {task.label}")
        refs[task.name] = named.remote(settled, os.getcwd(), task.name, *(refs[name] for name in task.needs))
    waiting = {ref: tasks[name] for name, ref in refs.items()}
    lost: dict[str, str] = {}  # task name -> why Ray gave it up
    board = Board(tasks.values(), runner.store, runner.reporter)
    with interrupts.handled(), interrupts.deferred():  # an exception out of a handler would upset Ray's own code
        try:
            with board.shown():
                while waiting:
                    ready, _ = ray.wait(list(waiting), num_returns=len(waiting), timeout=POLL_SECONDS)
                    for ref in ready:
                        task = waiting.pop(ref)
                        outcome = _outcome(ref, task, runner, lost)
                        for how, text in outcome.lines:
                            getattr(runner.reporter, how)(text)
                        board.finished(task, outcome.good, outcome.seconds)
                    board.look()
                    interrupts.leave_if_asked()
        except BaseException:
            if waiting:
                for ref in reversed(waiting):
                    ray.cancel(ref)
                ray.wait(list(waiting), num_returns=len(waiting), timeout=GRACE_SECONDS)
            raise
    return {task.key for task in tasks.values() if task.protocol is not None}


def _outcome(ref: Any, task: Task, runner: Runner, lost: dict[str, str]) -> Outcome:
    """Return what a task passed on; where Ray gave it up, its reason becomes the row's."""
    import ray
    from ray.exceptions import RayError, RayTaskError, TaskCancelledError

    why = next((lost[name] for name in task.needs if name in lost), None)
    if why is None:
        try:
            return ray.get(ref)  # type: ignore[no-any-return]
        except TaskCancelledError:
            raise ExecutorError(f"somebody cancelled the task '{task.network}: {task.label}'") from None
        except RayTaskError as err:
            if isinstance(err.cause, (StorageError, ExecutorError)):
                raise err.cause from None
            raise
        except RayError as err:
            why = f"its worker died {RETRIES + 1} times ({type(err).__name__}); was there enough memory?"
    lost[task.name] = why
    runner.broken[task.training.key if task.cell is None else task.key] = why
    if task.protocol is not None and task.cell is not None:
        runner.evaluate(task.training, task.cell, task.protocol)  # writes the reason down, and does nothing else
    else:
        runner.reporter.warn(f"{task.network}: {task.label}: {why}")
    return Outcome(False, 0.0, {}, [])
