"""Training cost of the timed methods of section 4.4, stage by stage."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NotRequired, TypedDict

import pandas as pd

from robobench.core.console import Reporter
from robobench.execution.run import execute_request
from robobench.paper import published
from robobench.paper.requests import TIMED, Scale, timing_request
from robobench.planning.plan import PlannedModel
from robobench.planning.planner import make_plan
from robobench.planning.request import ExperimentConfig
from robobench.report.formatting import MISSING, format_seconds
from robobench.store.artifacts import Store
from robobench.training.base import PassCounts

TRAIN, TOTAL = "all stages", "total incl. teachers"  # sums of a method, in the column "stage"


class TimeRow(TypedDict):
    """The cost of one stage, or a sum over the stages of a method; None where it does not apply."""

    method: str
    stage: str  # its name, TRAIN, TOTAL, or "not trained"
    epochs: int | None
    minutes_per_epoch: float | None
    seconds: float | None
    forward_equivalents: float | None  # per training image over all epochs, of the stage's model and its teachers
    paper: NotRequired[str]  # the paper's numbers


def run_times(scale: Scale, base: ExperimentConfig, reporter: Reporter) -> list[TimeRow]:
    """Train every timed method and return what its stages cost."""
    request = timing_request(scale, base)
    plan = make_plan(request)
    execute_request(request, reporter)
    store, mapping = Store(base.out), published.mapping()
    labels = {mapping["defenses"][name]: name for name in mapping["times"]}
    rows: list[TimeRow] = []
    for model in plan.models:
        timings = {m.key: _read_timing(store, m) for m in model.with_dependencies().values()}
        rows += _method_rows(labels[model.name], timings[model.key], timings.values())
    return rows


def _method_rows(
    label: str, timing: dict[str, Any] | None, all_timings: Iterable[dict[str, Any] | None]
) -> list[TimeRow]:
    """Return a method's rows: one per stage, and its sums without and with the models it requires."""
    if timing is None:
        return [_row(label, "not trained", None, None)]
    rows = []
    for stage in timing["stages"]:
        cost = stage_forward_equivalents(stage)
        row = _row(label, stage["name"], stage["seconds"], None if cost is None else cost * stage["epochs"])
        row["epochs"], row["minutes_per_epoch"] = stage["epochs"], stage["seconds_per_epoch"] / 60
        rows.append(row)
    total = _row(label, TOTAL, timing["total_train_seconds"], _sum_forward_equivalents(all_timings))
    total["paper"] = "; ".join(
        f"{r['metric']}{r['row'].removeprefix(label).replace(', ', ' of ')} {r['value']:g}"
        for r in published.records("times")
        if r["row"].split(",")[0] == label
    )
    return [*rows, _row(label, TRAIN, timing["train_seconds"], _sum_forward_equivalents([timing])), total]


def _row(method: str, stage: str, seconds: float | None, forward_equivalents: float | None) -> TimeRow:
    return {
        "method": method,
        "stage": stage,
        "epochs": None,
        "minutes_per_epoch": None,
        "seconds": seconds,
        "forward_equivalents": forward_equivalents,
    }


def _read_timing(store: Store, model: PlannedModel) -> dict[str, Any] | None:
    path = store.folder("model", model.folder) / "timing.json"
    return json.loads(path.read_text()) if path.is_file() else None


def stage_forward_equivalents(stage: Mapping[str, Any]) -> float | None:
    """Return the declared cost of a stage per training image and epoch; None if it declares none.

    Args:
        stage: an entry of `stages` in timing.json.
    """
    if stage["passes"] is None:
        return None
    passes = PassCounts(**stage["passes"])
    return passes.forward_equivalents + passes.teacher_forward_equivalents


def _sum_forward_equivalents(timings: Iterable[dict[str, Any] | None]) -> float | None:
    """Return the summed cost of all stages of some models; None if one of them is not declared."""
    total = 0.0
    for timing in timings:
        for stage in timing["stages"] if timing else ():
            cost = stage_forward_equivalents(stage)
            if cost is None:
                return None
            total += cost * stage["epochs"]
    return total


def notes(scale: Scale) -> list[str]:
    """Return the notes below the run times: substitutes, reductions, and the meaning of the columns."""
    return [
        *scale.notes([TIMED]),
        f"{TRAIN}: the method's own stages; {TOTAL}: with every model it requires; forward passes per image: over all "
        "epochs, of the stage's model and its teachers; for an autoencoder, a pass of its encoder or decoder counts "
        "as one",
        *published.notes("times"),
    ]


def format_rows(rows: Sequence[TimeRow]) -> pd.DataFrame:
    """Return the run times as text."""

    def number(value: float | None, form: str) -> str:
        return MISSING if value is None else format(value, form)

    return pd.DataFrame(
        {
            "": [row["method"] for row in rows],
            "stage": [row["stage"] for row in rows],
            "epochs": [number(row["epochs"], "g") for row in rows],
            "minutes per epoch": [number(row["minutes_per_epoch"], ".3g") for row in rows],
            "seconds": [format_seconds(row["seconds"]) for row in rows],
            "forward passes per image": [number(row["forward_equivalents"], ",.0f") for row in rows],
            "paper": [row.get("paper") or "" for row in rows],
        }
    )
