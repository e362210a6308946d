"""Execute requests: plan them, run them on one device, several devices or a cluster, and rewrite rows.csv."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial

from robobench.core.console import Reporter, SilentReporter
from robobench.core.device import resolve_device
from robobench.distributed import collectives, launch
from robobench.errors import Interrupted, RequestError
from robobench.execution.runner import Runner, Work, run_serially
from robobench.planning.plan import Plan
from robobench.planning.planner import prepare_all
from robobench.planning.request import ExperimentConfig
from robobench.results.records import EvaluationRecord
from robobench.results.rows import read_records, rewrite_rows

CheckPlan = Callable[[Plan], None]


def execute_request(
    request: ExperimentConfig, reporter: Reporter, check_plan: CheckPlan | None = None
) -> list[EvaluationRecord]:
    """Execute one request; see `execute_requests`. Return the records of its cells."""
    records = execute_requests([request], reporter, check_plan)
    return records[0] if records else []


def execute_requests(
    requests: Sequence[ExperimentConfig], reporter: Reporter, check_plan: CheckPlan | None = None
) -> list[list[EvaluationRecord]]:
    """Execute requests on one store, rewrite rows.csv, and return the records of the cells of each.

    An artifact that several requests need is built once. With several devices, this process starts one process per
    device and waits. Under torchrun, only rank 0 returns records.

    Args:
        requests: they share the store, the devices and the executor.
        check_plan: called with each plan before anything is written; it may raise to refuse the plan.

    Raises:
        RequestError: a request is wrong; nothing was created.
        StorageError: the store cannot be written. Finished work is kept, and the same request resumes from it.
        ProcessError: one of several processes died.
        ExecutorError: a cluster cannot continue. Finished work is kept.
    """
    single_process = collectives.world_size() == 1  # before torchrun's processes join, too
    if single_process and launch.torchrun_world_size() > 1:
        device = resolve_device(requests[0].device)
        launch.resolve_device_count(requests[0].devices, device)
        work = partial(_execute_on_rank, requests, reporter.verbosity, check_plan)
        return launch.run_under_torchrun(device, work)  # type: ignore[no-any-return]
    prepared = prepare_all(requests)
    plans = [plan for plan, _ in prepared]
    if check_plan is not None:
        for plan in plans:
            check_plan(plan)
    first = plans[0]
    with _executor(requests[0], first, reporter) as execute:
        try:
            first.out.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            raise RequestError(
                f"--out '{first.out}' cannot be written ({err.strerror}); choose another folder"
            ) from None
        work_list = [Work(r, Runner(*pair, reporter)) for r, pair in zip(requests, prepared, strict=True)]
        store = work_list[0].runner.context.store
        if single_process and first.devices > 1:
            shared = [replace(r, threads=first.threads) for r in requests]  # every process gets its share of threads
            launch.spawn_processes(
                first.device, first.devices, partial(_execute_on_rank, shared, reporter.verbosity, None)
            )
            keys = [{w.runner.evaluator.key(cell) for cell in w.runner.plan.cells()} for w in work_list]
            return _select(read_records(first.out, repair=store), keys)  # rank 0 wrote rows.csv
        try:
            keys = execute(work_list)
        except (KeyboardInterrupt, Interrupted):
            collectives.on_rank_zero(partial(rewrite_rows, store))
            raise
        return _select(rewrite_rows(store, set[str]().union(*keys)), keys) if collectives.is_rank_zero() else []


def _select(records: list[EvaluationRecord], keys: list[set[str]]) -> list[list[EvaluationRecord]]:
    """Return the records with each set of keys."""
    return [[record for record in records if record["key"] in some] for some in keys]


def _executor(
    request: ExperimentConfig, plan: Plan, reporter: Reporter
) -> AbstractContextManager[Callable[[list[Work]], list[set[str]]]]:
    """Return a context with the function that executes runs and returns the keys of the records of each."""
    if request.executor == "serial":
        return nullcontext(run_serially)
    if request.executor == "slurm":
        from robobench.execution.slurm_executor import connect
    else:
        from robobench.execution.ray_executor import connect
    return connect(request, plan, reporter)


def _execute_on_rank(
    requests: Sequence[ExperimentConfig], verbosity: int, check_plan: CheckPlan | None, device: str
) -> list[list[EvaluationRecord]]:
    """Execute requests as one of several processes, on the device of this process."""
    reporter = Reporter(verbosity) if collectives.is_rank_zero() else SilentReporter()
    return execute_requests([replace(request, device=device) for request in requests], reporter, check_plan)
