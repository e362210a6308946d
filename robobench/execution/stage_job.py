"""Runs a stage of a training, or loads its result from the store."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from safetensors.torch import load_file
from torch import nn

from robobench.core.memory import release_freed_memory
from robobench.core.timing import Stopwatch
from robobench.distributed import collectives, signals
from robobench.execution.context import RunContext
from robobench.execution.model_folder import Metrics, TrainingResult
from robobench.planning.plan import TrainingJob
from robobench.store.artifacts import hash_recipe
from robobench.store.partial import PartialResults
from robobench.store.tensors import Array, save_array, save_tensors
from robobench.training.averaging import WeightAverage
from robobench.training.base import DefenseSetup, Precompute, PrecomputedArray, Stage, Train
from robobench.training.checkpoint import Checkpoint
from robobench.training.context import ImageSource, StageRecord, TrainRuntime, build_objective
from robobench.training.loop import run_train
from robobench.training.precompute import run_precompute
from robobench.training.selection import EpochSelection


class StageRunner:
    """Runs the stages of one training.

    Args:
        setup: each precomputing stage adds its array to `setup.precomputed`.
        data: the training images.
    """

    def __init__(
        self, context: RunContext, job: TrainingJob, runtime: TrainRuntime, setup: DefenseSetup, data: ImageSource
    ) -> None:
        self.context, self.job, self.runtime, self.setup, self.data = context, job, runtime, setup, data

    def run(self, stage: Stage, *, last: bool, result: TrainingResult) -> tuple[StageRecord, Metrics]:
        """Run a stage, or load it from the store. The last stage always runs: its result is the trained model.

        Args:
            result: its weight average and epoch selections follow the last stage.
        """
        key = hash_recipe(self.job.stage_recipe(stage))
        found = None if last else self.context.find("stages", key)
        if found:
            record, metrics = self._reuse(stage, found)
            self.context.tracking.epochs(self.job, metrics)
            return record, metrics
        saves = PartialResults(self.context.store, f"checkpoints/{self.job.folder}/{key}")
        average, selections = (result.average, result.selections) if last else (None, {})
        checkpoint = Checkpoint(
            saves,
            60 * self.context.plan.checkpoint_minutes,
            selections=selections,
            average=average.averaged if average else None,
        )
        release_freed_memory()  # so that the peak of this stage does not include earlier ones
        metrics = []
        stopwatch = Stopwatch(self.runtime.device)
        if isinstance(stage, Precompute):
            record, parts = run_precompute(self.runtime, stage, self.data, stopwatch, checkpoint)
            if not last:
                collectives.on_rank_zero(lambda: self._keep(stage, key, record, metrics, parts=parts))
                parts.clear()  # the stored copy is enough
                self._use_array(stage, self.context.store.folder("stages", key))
        else:
            record, objective = self._train(stage, stopwatch, checkpoint, metrics, selections, average)
            if not last:
                collectives.on_rank_zero(lambda: self._keep(stage, key, record, metrics, objective=objective))
        if not last:
            saves.clear()
        signals.raise_if_stop_requested()
        return record, metrics

    def _train(
        self,
        stage: Train,
        stopwatch: Stopwatch,
        checkpoint: Checkpoint,
        metrics: Metrics,
        selections: dict[str, EpochSelection],
        average: WeightAverage | None,
    ) -> tuple[StageRecord, nn.Module]:
        def log(name: str, epoch: int, values: dict[str, float]) -> None:
            lines = [(name, epoch, k, v) for k, v in values.items()]
            metrics.extend(lines)
            self.context.tracking.epochs(self.job, lines)
            text = ", ".join(f"{k} {v:.4g}" for k, v in values.items())
            self.context.reporter.debug(f"  {name} epoch {epoch + 1}: {text}")

        def validate(epoch: int, is_last: bool) -> dict[str, float]:
            measured = [selection.validate(epoch, is_last) for selection in selections.values()]
            return {name: value for part in measured for name, value in part.items()}

        after_epoch = validate if selections else None
        return run_train(self.runtime, stage, self.data, stopwatch, log, checkpoint, after_epoch, average)

    def _reuse(self, stage: Stage, folder: Path) -> tuple[StageRecord, Metrics]:
        """Load a stored stage's result."""
        stored = json.loads((folder / "record.json").read_text())
        if isinstance(stage, Precompute):
            self._use_array(stage, folder)
        else:
            objective = build_objective(stage, self.runtime.device)
            objective.load_state_dict(load_file(folder / "state.safetensors", device=self.runtime.device))
            self.runtime.compile(objective)  # as if it had run: a later stage may use its models
        self.context.reporter.info(f"  {stage.name}: reused")
        return StageRecord(**stored["record"]), [tuple(line) for line in stored["metrics"]]

    def _use_array(self, stage: Stage, folder: Path) -> None:
        array = np.load(folder / "array.npy", mmap_mode="r", allow_pickle=False)
        self.setup.precomputed[stage.name] = PrecomputedArray(array, self.runtime.device)

    def _keep(
        self,
        stage: Stage,
        key: str,
        record: StageRecord,
        metrics: Metrics,
        *,
        parts: list[Array] | None = None,
        objective: nn.Module | None = None,
    ) -> None:
        """Store a stage's result: an array in parts, or an objective's state."""
        with self.context.store.create("stages", key, self.job.stage_recipe(stage)) as work:
            if parts is not None:
                save_array(parts, work / "array.npy")
            if objective is not None:
                save_tensors(objective.state_dict(), work / "state.safetensors")
            (work / "record.json").write_text(json.dumps({"record": asdict(record), "metrics": metrics}))
