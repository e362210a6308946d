"""What the timed methods of section 4.4 cost here, stage by stage."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pandas as pd

from robobench.core.console import Reporter
from robobench.execution.run import execute_request
from robobench.paper import published
from robobench.paper.requests import TIMED, Scale, training_request
from robobench.planning.plan import PlannedModel
from robobench.planning.planner import make_plan
from robobench.planning.request import ExperimentConfig
from robobench.report.formatting import MISSING, seconds
from robobench.store.artifacts import Store
from robobench.training.base import PassCounts

Line = dict[str, Any]  # one stage, or a method's sum
TIMES = ("epochs", "minutes_an_epoch", "seconds", "units")


def run_times(scale: Scale, base: ExperimentConfig, reporter: Reporter) -> list[Line]:
    """Train every timed method and lay out what each stage cost, in seconds and in forwards of its network.

    `units` count forward-equivalents a training image over all epochs, of the stage's own network and its
    teachers; an autoencoder's pass is one of its encoder or of its decoder.
    """
    request = training_request(scale, base)
    plan = make_plan(request)
    execute_request(request, reporter)
    store, answers = Store(base.out), published.answers()
    labels = {answers["defenses"][name]: name for name in answers["times"]}
    lines = []
    for training in plan.models:
        records = {t.key: _timing(store, t) for t in training.with_dependencies().values()}
        own = records[training.key]
        label = labels[training.name]
        if own is None:
            lines.append({"method": label, "stage": "not trained", **dict.fromkeys(TIMES)})
            continue
        for stage in own["stages"]:
            units = stage_units(stage)
            lines.append(
                {
                    "method": label,
                    "stage": stage["name"],
                    "epochs": stage["epochs"],
                    "minutes_an_epoch": stage["seconds_per_epoch"] / 60,
                    "seconds": stage["seconds"],
                    "units": None if units is None else units * stage["epochs"],
                }
            )
        lines.append(
            {
                "method": label,
                "stage": "own",
                "epochs": None,
                "minutes_an_epoch": None,
                "seconds": own["train_seconds"],
                "units": _sum([own]),
            }
        )
        lines.append(
            {**lines[-1], "stage": "whole", "seconds": own["total_train_seconds"], "units": _sum(records.values())}
        )
        lines[-1]["paper"] = "; ".join(
            f"{r['metric']}{r['row'].removeprefix(label).replace(', ', ' of ')} {r['value']:g}"
            for r in published.records("times")
            if r["row"].split(",")[0] == label
        )
    return lines


def _timing(store: Store, training: PlannedModel) -> dict[str, Any] | None:
    path = store.folder("model", training.folder) / "timing.json"
    return json.loads(path.read_text()) if path.is_file() else None


def stage_units(stage: dict[str, Any]) -> float | None:
    """Forward-equivalents a training image and epoch, as the method declares them."""
    if stage["passes"] is None:
        return None
    passes = PassCounts(**stage["passes"])
    return passes.forward_equivalents + passes.teacher_forward_equivalents


def _sum(timings: Iterable[dict[str, Any] | None]) -> float | None:
    """Add the units of some networks' stages; None where one of them is not known."""
    total = 0.0
    for timing in timings:
        for stage in timing["stages"] if timing else ():
            units = stage_units(stage)
            if units is None:
                return None
            total += units * stage["epochs"]
    return total


def notes(scale: Scale) -> list[str]:
    """Say what was timed, and how to read the columns."""
    return [
        *scale.notes([TIMED]),
        "own: this method's stages; whole: with every network it required; forwards an image: over all epochs, of the "
        "stage's own network and its teachers, an autoencoder's pass being one of its encoder or its decoder",
        *published.notes("times"),
    ]


def times_text(lines: list[Line]) -> pd.DataFrame:
    """Round the run times for reading."""

    def rounded(value: Any, form: str) -> str:
        return MISSING if value is None else format(value, form)

    return pd.DataFrame(
        {
            "": [entry["method"] for entry in lines],
            "stage": [entry["stage"] for entry in lines],
            "epochs": [rounded(entry["epochs"], "g") for entry in lines],
            "minutes an epoch": [rounded(entry["minutes_an_epoch"], ".3g") for entry in lines],
            "seconds": [seconds(entry["seconds"]) for entry in lines],
            "forwards an image": [rounded(entry["units"], ",.0f") for entry in lines],
            "paper": [entry.get("paper") or "" for entry in lines],
        }
    )
