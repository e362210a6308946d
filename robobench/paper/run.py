"""`paper run`: tables, one after the other, with what they cost first where that is days."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from robobench.core.console import Reporter
from robobench.core.paths import check_writable
from robobench.errors import RequestError
from robobench.paper import comparison, published, times
from robobench.paper.formatting import check_format, write
from robobench.paper.requests import Scale, requests, training_request
from robobench.paper.summary import one_table
from robobench.planning import cost
from robobench.planning.plan import Plan
from robobench.planning.planner import make_plan
from robobench.planning.request import ExperimentConfig
from robobench.store.artifacts import write_atomic

ONE_DOCUMENT = ("csv", "json")  # formats in which several tables are one list of records


def tables(
    names: Sequence[str],
    scale: Scale,
    base: ExperimentConfig,
    reporter: Reporter,
    *,
    form: str = "table",
    rows: Path | None = None,
    dry: bool = False,
) -> int:
    """Run tables and print each when it is done; returns the exit status.

    Args:
        rows: gets the store's rows behind all of them, readable by `robobench leaderboard` as FOLDER/rows.csv.

    Raises:
        RequestError: a wrong request; nothing was created.
    """
    check_format(form)
    check_writable(base.out)
    if rows is not None and not rows.parent.is_dir():
        raise RequestError(f"--rows '{rows}': the folder does not exist; create it first")
    if dry or scale.name == published.OWN_SCALE:
        said = cost.cost_of_plans([plan for name in names for plan in plans(name, scale, base)])
        if dry:
            print("\n".join(said))
            return 0
        for line in said:
            reporter.info(line)
    found: list[pd.DataFrame] = []
    raw: list[dict[str, Any]] = []
    failed = False
    for name in names:
        if name == "times":
            lines = times.run_times(scale, base, reporter)
            shown, notes = times.times_text(lines), times.notes(scale)
            failed |= any(line["seconds"] is None for line in lines)
        else:
            lines, behind = comparison.run(name, scale, base, reporter)
            shown, notes = comparison.as_text(lines), comparison.notes(name, scale, lines)
            failed |= bool((behind["status"] != "ok").any())
            found.append(behind)
        raw += lines
        notes += flags_note(base)
        if form not in ONE_DOCUMENT:
            print(write(shown, f"{published.title(name)}; preset {scale.name}", notes, form, lines), flush=True)
    if form not in ONE_DOCUMENT and len(names) > 1:
        print(one_table(raw, form))
    if form in ONE_DOCUMENT:
        print(write(pd.DataFrame(), "", [], form, raw), end="")
    if rows is not None and found:
        write_atomic(rows, pd.concat(found).drop_duplicates().to_csv(index=False))
        reporter.info(f"rows: {rows}")
    return int(failed)


def flags_note(base: ExperimentConfig) -> list[str]:
    """Say which flags of the request changed the scale."""
    given = [f"--{name} {value}" for name in ("examples", "epochs") if (value := getattr(base, name)) is not None]
    given += [f"--set {text}" for text in base.sets]
    return [f"changed on the command line: {' '.join(given)}"] if given else []


def plans(table: str, scale: Scale, base: ExperimentConfig) -> list[tuple[Plan, tuple[str, ...]]]:
    """Plan a table, with the settings that tell its networks apart; missing data become a line of the plan."""
    if table == "times":
        return [(make_plan(training_request(scale, base), dry=True), ())]
    return [
        (make_plan(request, dry=True), group.settings)
        for group, asked in requests(table, scale, base).items()
        for request in asked
    ]
