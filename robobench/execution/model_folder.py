"""The folder of a trained model: weights, config.json, timing.json, metrics.csv, run.log."""

from __future__ import annotations

import csv
import io
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import torch
from torch import nn

from robobench.core import provenance
from robobench.execution.context import RunContext
from robobench.models.flops import count_forward_flops
from robobench.planning.plan import PlannedModel, TrainingJob
from robobench.results.records import StageTiming, TeacherTiming, TrainingTiming
from robobench.store.artifacts import WEIGHT_FILES
from robobench.store.tensors import save_tensors
from robobench.training.averaging import WeightAverage
from robobench.training.config import recorded_values
from robobench.training.context import StageRecord
from robobench.training.selection import EpochSelection

Metrics = list[tuple[str, int, str, float]]  # stage, epoch, name, value


@dataclass
class TrainingResult:
    """Results of a training other than the weights; empty for an external model."""

    stages: list[StageRecord] = field(default_factory=list)
    metrics: Metrics = field(default_factory=list)
    teachers: dict[str, TeacherTiming] = field(default_factory=dict)
    average: WeightAverage | None = None
    selections: dict[str, EpochSelection] = field(default_factory=dict)  # best, best-average


def save_model(context: RunContext, planned: PlannedModel, module: nn.Module, result: TrainingResult) -> None:
    """Store a trained model in its folder."""
    with context.store.create("model", planned.folder, planned.recipe) as work:
        save_tensors(module.state_dict(), work / WEIGHT_FILES["last"])
        if result.average:
            save_tensors(result.average.module.state_dict(), work / WEIGHT_FILES["average"])
        for name, selection in result.selections.items():
            save_tensors(selection.weights, work / WEIGHT_FILES[name])
        (work / "config.json").write_text(json.dumps(_config(context, planned), indent=1))
        (work / "timing.json").write_text(json.dumps(_timing(context, planned, result), indent=1))
        table = io.StringIO()
        csv.writer(table).writerows([("stage", "epoch", "metric", "value"), *result.metrics])
        (work / "metrics.csv").write_text(table.getvalue())
        if context.reporter.log_file is not None:
            shutil.move(context.reporter.log_file, work / "run.log")
            context.reporter.log_file = None


def stage_timing(record: StageRecord) -> StageTiming:
    """Return a stage's record as plain values."""
    rates = {"seconds_per_epoch": record.seconds_per_epoch, "images_per_second": record.images_per_second}
    return cast(StageTiming, {**asdict(record), **rates})


def _timing(context: RunContext, planned: PlannedModel, result: TrainingResult) -> TrainingTiming:
    stages: Sequence[StageRecord] = result.stages
    seconds = sum(s.seconds for s in stages) if stages else None  # unknown for an external model
    others = [other for key, other in planned.with_dependencies().items() if key != planned.key]
    required: Mapping[str, float | None] = {other.folder: context.timing(other)["train_seconds"] for other in others}
    selections = {name: selection.record() for name, selection in result.selections.items()}
    known = [value for value in (seconds, *required.values()) if value is not None]
    timing: TrainingTiming = {
        "stages": [stage_timing(s) for s in stages],
        "train_seconds": seconds,
        "total_train_seconds": sum(known) if len(known) == 1 + len(required) else None,
        "warmup_seconds": sum(s.warmup_seconds for s in stages) if stages else None,
        "peak_memory_bytes": max((s.peak_memory_bytes for s in stages), default=None),
        "required": dict(required),
        "teachers": result.teachers,
        "selection": selections.get("best"),
        "flags": [flag for s in stages for flag in s.flags],
        "hardware": provenance.hardware(context.plan.device, context.plan.devices),
        "devices": context.plan.devices,
        "forward_flops": count_forward_flops(planned.spec, context.plan.run.attack_resolution),
        "commit": provenance.commit(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    if extra := context.dataset.extra if "extra" in planned.recipe else None:
        timing["extra"] = f"{context.plan.run.extra_fraction:g} of {len(extra)}"
    if "best-average" in selections:
        timing["selection_average"] = selections["best-average"]
    return timing


def _extra(context: RunContext) -> dict[str, Any]:
    extra = context.dataset.extra
    assert extra is not None
    return {"extra": extra.digest, "extra_images": len(extra), "extra_fraction": context.plan.run.extra_fraction}


def _config(context: RunContext, planned: PlannedModel) -> dict[str, Any]:
    plan = context.plan
    return {
        "defense": planned.name,
        "defense_version": planned.version,
        "preset": plan.preset,
        "dataset": planned.dataset,
        "data_digest": plan.dataset.test_digest,
        "train_images": planned.recipe["train_images"],
        "held_out": planned.recipe.get("held_out", 0),
        **({"init": plan.init.text} if plan.init and "init" in planned.recipe else {}),
        **(_extra(context) if "extra" in planned.recipe else {}),
        "resolution": plan.run.attack_resolution,
        "spec": asdict(planned.spec),
        "config": recorded_values(planned.config) if isinstance(planned, TrainingJob) else {},
        "threat": planned.threat.recipe() if planned.threat else None,
        "seed": planned.seed,
        "precision": plan.precision,
        "compiled": planned.compiled,
        "threads": plan.threads,
        "devices": plan.devices,
        "sync_batchnorm": plan.run.sync_batchnorm,
        "torch": torch.__version__,
        "key": planned.key,
    }
