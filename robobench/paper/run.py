"""`paper run`: run tables one after the other and print each when it is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from robobench.core.console import Reporter
from robobench.core.paths import check_writable
from robobench.errors import RequestError
from robobench.paper import comparison, published, times
from robobench.paper.formatting import check_format, write
from robobench.paper.requests import Scale, table_requests, timing_request
from robobench.paper.summary import one_table
from robobench.planning.cost import cost_of_plans
from robobench.planning.plan import Plan
from robobench.planning.planner import make_plan
from robobench.planning.request import ExperimentConfig
from robobench.store.artifacts import write_atomic

ONE_DOCUMENT = ("csv", "json")  # formats that write all tables as one list of records


def run_tables(
    tables: Sequence[str],
    scale: Scale,
    base: ExperimentConfig,
    reporter: Reporter,
    *,
    form: str = "table",
    rows_file: Path | None = None,
    dry_run: bool = False,
) -> int:
    """Run tables, print each when it is done, and return the exit status.

    The estimated cost is printed first at the paper's full scale, and alone with `dry_run`.

    Args:
        rows_file: CSV file that gets the result rows of all tables; `robobench leaderboard` reads FOLDER/rows.csv.

    Raises:
        RequestError: the request is wrong; nothing was created.
    """
    check_format(form)
    check_writable(base.out)
    if rows_file is not None and not rows_file.parent.is_dir():
        raise RequestError(f"--rows '{rows_file}': the folder does not exist; create it first")
    if dry_run or scale.name == published.FULL_SCALE:
        costs = cost_of_plans([plan for table in tables for plan in make_plans(table, scale, base)])
        if dry_run:
            print("\n".join(costs))
            return 0
        for line in costs:
            reporter.info(line)
    results: list[pd.DataFrame] = []
    rows: list[Mapping[str, Any]] = []
    failed = False
    for table in tables:
        shown, notes, table_rows, complete = _run_one(table, scale, base, reporter, results)
        rows += table_rows
        failed |= not complete
        notes += changed_flags_note(base)
        if form not in ONE_DOCUMENT:
            title = f"{published.title(table)}; preset {scale.name}"
            print(write(shown, title, notes, form, table_rows), flush=True)
    if form in ONE_DOCUMENT:
        print(write(pd.DataFrame(), "", [], form, rows), end="")
    elif len(tables) > 1:
        print(one_table(rows, form))
    if rows_file is not None and results:
        write_atomic(rows_file, pd.concat(results).drop_duplicates().to_csv(index=False))
        reporter.info(f"rows: {rows_file}")
    return int(failed)


def _run_one(
    table: str, scale: Scale, base: ExperimentConfig, reporter: Reporter, results: list[pd.DataFrame]
) -> tuple[pd.DataFrame, list[str], Sequence[Mapping[str, Any]], bool]:
    """Run one table and append its result rows to `results`.

    Returns:
        The table as text, its notes, its rows, and whether nothing failed.
    """
    if table == "times":
        time_rows = times.run_times(scale, base, reporter)
        complete = all(row["seconds"] is not None for row in time_rows)
        return times.format_rows(time_rows), times.notes(scale), time_rows, complete
    rows, found = comparison.run_table(table, scale, base, reporter)
    results.append(found)
    complete = bool((found["status"] == "ok").all())
    return comparison.format_rows(rows), comparison.notes(table, scale, rows), rows, complete


def changed_flags_note(base: ExperimentConfig) -> list[str]:
    """Return a note on the command-line flags that change the scale; empty if there are none."""
    given = [f"--{name} {value}" for name in ("examples", "epochs") if (value := getattr(base, name)) is not None]
    given += [f"--set {text}" for text in base.sets]
    return [f"changed on the command line: {' '.join(given)}"] if given else []


def make_plans(table: str, scale: Scale, base: ExperimentConfig) -> list[tuple[Plan, tuple[str, ...]]]:
    """Return the plans of a table, each with its ablation settings. Missing data are listed in the plan."""
    if table == "times":
        return [(make_plan(timing_request(scale, base), dry=True), ())]
    return [
        (make_plan(request, dry=True), group.settings)
        for group, requests in table_requests(table, scale, base).items()
        for request in requests
    ]
