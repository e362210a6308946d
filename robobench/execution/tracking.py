"""Sends training metrics and results to the trackers of --track. A tracker that fails never stops a run."""

from __future__ import annotations

import contextlib
import csv
import math
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from robobench.core.console import Reporter
from robobench.core.tracker import Tracker
from robobench.distributed import collectives
from robobench.errors import one_line
from robobench.planning.plan import Plan, PlannedModel, TrainingJob
from robobench.plugins.discovery import load_plugin
from robobench.results.records import EvaluationRecord
from robobench.training.config import recorded_values

MetricLine = tuple[str, int, str, float]  # stage, epoch from 0, name, value: a line of metrics.csv


class Tracking:
    """The trackers of a run. One model is open at a time; only rank 0 tracks."""

    def __init__(self, plan: Plan, reporter: Reporter) -> None:
        self.plan, self.reporter = plan, reporter
        self.names = [*plan.track] if collectives.is_rank_zero() else []
        self._model: str | None = None
        self._open: dict[str, Tracker] = {}

    def epochs(self, model: PlannedModel, lines: Iterable[MetricLine]) -> None:
        """Log training metrics as STAGE/METRIC."""
        by_epoch: dict[int, dict[str, float]] = {}
        for stage, epoch, name, value in lines:
            by_epoch.setdefault(epoch + 1, {})[f"{stage}/{name}"] = value
        for epoch, values in by_epoch.items():
            self._each(model, lambda tracker, e=epoch, v=values: tracker.log(_finite(v), e))  # type: ignore[misc]

    def stored(self, model: PlannedModel, *, reused: bool) -> None:
        """Record the folder of a trained model. If an earlier run trained it, its metrics are logged from there."""
        folder = self.plan.out / model.folder
        if reused and self.names:
            with (folder / "metrics.csv").open() as file:
                lines = [(s, int(e), name, float(v)) for s, e, name, v in list(csv.reader(file))[1:]]
            self.epochs(model, lines)
        self._each(model, lambda tracker: tracker.artifact(folder))

    def cell(self, model: PlannedModel, record: EvaluationRecord) -> None:
        """Log the accuracies of a cell. A failed cell has none."""
        clean, robust = record["clean_bits"], record["robust_bits"]
        if record["status"] != "ok" or not clean or not robust:
            return
        weights = "" if model.selection == "last" else f"{model.selection}/"
        what = f"{record['attack']} {record['threat_norm']} {record['threat_eps']:.4g}"
        values = {
            f"{weights}{record['protocol']}/{what}": robust.count("1") / len(robust),
            f"{weights}clean_accuracy": clean.count("1") / len(clean),
        }
        self._each(model, lambda tracker: tracker.log(_finite(values)))

    def close(self) -> None:
        """Close the trackers of the open model."""
        for name, tracker in [*self._open.items()]:
            self._guarded(name, tracker.close)
        self._open, self._model = {}, None

    def _each(self, model: PlannedModel, use: Callable[[Tracker], None]) -> None:
        """Use every tracker of a model, and open them if another model was open."""
        if self._model != model.folder:
            self.close()
            self._model = model.folder
            for name in [*self.names]:
                made = self._guarded(name, lambda name=name: self._make(name, model))  # type: ignore[misc]
                if made is not None:
                    self._open[name] = made
        for name, tracker in [*self._open.items()]:
            self._guarded(name, lambda tracker=tracker: use(tracker))  # type: ignore[misc]

    def _make(self, name: str, model: PlannedModel) -> Tracker:
        config = recorded_values(model.config) if isinstance(model, TrainingJob) else {}
        facts = {"defense": model.name, "model": model.spec.name, "dataset": model.dataset, "seed": model.seed}
        facts |= {"preset": self.plan.preset, "precision": self.plan.precision, "key": model.key}
        facts |= {f"train_{k}": v for k, v in model.threat.recipe().items()} if model.threat else {}
        tracker: Tracker = load_plugin("tracker", name)(model.folder, {**config, **facts}, self._folder(name))
        return tracker

    def _folder(self, name: str) -> Path:
        return self.plan.out / "tracking" / name

    def _guarded(self, name: str, call: Callable[[], Any]) -> Any:
        """Call a tracker with its prints on stderr; on an error, warn and track no more with it."""
        try:
            with contextlib.redirect_stdout(sys.stderr):
                return call()
        except Exception as err:
            self.reporter.warning(f"--track {name} failed and is switched off: {one_line(err)}")
            self.names = [other for other in self.names if other != name]
            self._open.pop(name, None)
            return None


def _finite(values: dict[str, float]) -> dict[str, float]:
    """Return the finite values, under names that every tool accepts."""
    return {re.sub(r"[^\w ./-]", "-", name): value for name, value in values.items() if math.isfinite(value)}
