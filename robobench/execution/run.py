"""Execute a request: plan it, run it on one device, several devices or a cluster, and rewrite rows.csv."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial

from robobench.core.console import Reporter, SilentReporter
from robobench.core.device import resolve_device
from robobench.distributed import collectives, launch
from robobench.errors import Interrupted, RequestError
from robobench.execution.runner import Runner
from robobench.planning.plan import Plan
from robobench.planning.planner import prepare
from robobench.planning.request import ExperimentConfig
from robobench.results.records import EvaluationRecord
from robobench.results.rows import read_records, rewrite_rows

CheckPlan = Callable[[Plan], None]


def execute_request(
    request: ExperimentConfig, reporter: Reporter, check_plan: CheckPlan | None = None
) -> list[EvaluationRecord]:
    """Execute a request, rewrite rows.csv, and return the records of the requested cells.

    With several devices, this process starts one process per device and waits. Under torchrun, only rank 0 returns
    records.

    Args:
        check_plan: called with the plan before anything is written; it may raise to refuse the plan.

    Raises:
        RequestError: the request is wrong; nothing was created.
        StorageError: the store cannot be written. Finished work is kept, and the same request resumes from it.
        ProcessError: one of several processes died.
        ExecutorError: a cluster cannot continue. Finished work is kept.
    """
    single_process = collectives.world_size() == 1  # before torchrun's processes join, too
    if single_process and launch.torchrun_world_size() > 1:
        device = resolve_device(request.device)
        launch.resolve_device_count(request.devices, device)
        work = partial(_execute_on_rank, request, reporter.verbosity, check_plan)
        return launch.run_under_torchrun(device, work)  # type: ignore[no-any-return]
    plan, dataset = prepare(request)
    if check_plan is not None:
        check_plan(plan)
    with _executor(request, plan, reporter) as execute:
        try:
            plan.out.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            raise RequestError(
                f"--out '{plan.out}' cannot be written ({err.strerror}); choose another folder"
            ) from None
        runner = Runner(plan, dataset, reporter)
        store = runner.context.store
        if single_process and plan.devices > 1:
            request = replace(request, threads=plan.threads)  # every process gets its share of the threads
            work = partial(_execute_on_rank, request, reporter.verbosity, None)
            launch.spawn_processes(plan.device, plan.devices, work)
            keys = {runner.evaluator.key(cell) for cell in plan.cells()}
            return [r for r in read_records(plan.out, repair=store) if r["key"] in keys]  # rank 0 wrote rows.csv
        runner.announce()
        try:
            keys = execute(runner)
        except (KeyboardInterrupt, Interrupted):
            collectives.on_rank_zero(partial(rewrite_rows, store))
            raise
        if not collectives.is_rank_zero():
            return []
        return [record for record in rewrite_rows(store) if record["key"] in keys]


def _executor(
    request: ExperimentConfig, plan: Plan, reporter: Reporter
) -> AbstractContextManager[Callable[[Runner], set[str]]]:
    """Return a context with the function that executes a plan and returns the keys of its records."""
    if request.executor == "serial":
        return nullcontext(Runner.run)
    if request.executor == "slurm":
        from robobench.execution.slurm_executor import connect
    else:
        from robobench.execution.ray_executor import connect
    return connect(request, plan, reporter)


def _execute_on_rank(
    request: ExperimentConfig, verbosity: int, check_plan: CheckPlan | None, device: str
) -> list[EvaluationRecord]:
    """Execute a request as one of several processes, on the device of this process."""
    reporter = Reporter(verbosity) if collectives.is_rank_zero() else SilentReporter()
    return execute_request(replace(request, device=device), reporter, check_plan)
