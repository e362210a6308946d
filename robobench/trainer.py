"""From the trainings of a plan to networks in the store, prerequisites first; the store is asked first.

A training that fails leaves its reason; only what needs that network stops. Of several processes all do the same in
step; the first one looks into the store for all and alone writes to it.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from robobench import interrupts, models, plugins, processes, provenance
from robobench.allocator import give_back_freed_memory, keep_freed_memory
from robobench.api import Frozen, Produce, Produced, Setup, Stage, Train
from robobench.architectures import Prepared
from robobench.checkpoint import Checkpoint, Unfinished, save_rows, save_tensors
from robobench.errors import ArtifactError, StorageError
from robobench.plan import NO_THREAT, External, Plan, Training
from robobench.probe import Selection, probe
from robobench.progress import Reporter, duration
from robobench.store import WEIGHT_FILES, Store, file_digest, key_of, storing
from robobench.timing import Stopwatch
from robobench.training import Engine, Images, StageRecord, build_objective, run_produce, run_train
from robobench.weights import state_digest

Metrics = list[tuple[str, int, str, float]]  # stage, epoch, name, value
TEACHER_IMAGES = 128  # training images every teacher is measured on before it is used


class SharedStore(Store):
    """The store as processes in step hold it: only the first one locks, begins and removes."""

    @contextmanager
    def lock(self, kind: str, name: str) -> Iterator[None]:
        """Hold the right to build an artefact, for all processes."""
        with super().lock(kind, name) if processes.first() else nullcontext():
            yield

    def begin(self, kind: str) -> None:
        """Set the unfinished work of a kind aside where everything is to be made anew."""
        if processes.first():
            super().begin(kind)

    def discard(self, kind: str) -> None:
        """Remove unfinished work that is no longer needed."""
        if processes.first():
            super().discard(kind)


def _produced(folder: Path, engine: Engine) -> Produced:
    """Map what a Produce stage left in the store."""
    return Produced(np.load(folder / "array.npy", mmap_mode="r", allow_pickle=False), engine.device)


class Trainer:
    """Carries out the trainings of a plan."""

    def __init__(self, plan: Plan, reporter: Reporter) -> None:
        self.plan, self.reporter = plan, reporter
        self.store = SharedStore(plan.out, fresh=plan.fresh, tell=reporter.warn)
        self.broken: dict[str, str] = {}  # key of a training or an evaluation -> why there is no such result
        self._network: tuple[str, Prepared] | None = None  # the last one used stays in memory
        torch.set_num_threads(plan.threads)
        keep_freed_memory()

    def find(self, kind: str, name: str) -> Path | None:
        """Return an artefact's folder if the first process finds it whole."""
        return processes.from_first(lambda: self.store.find(kind, name))

    def train_all(self) -> None:
        """Train what is missing, prerequisites first; a failure stops only what needs that network."""
        for training in self.plan.order():
            self.attempt(training)

    def attempt(self, training: Training) -> None:
        """Train one network, or write down why there is none; what it requires was attempted before."""
        blocked = [t for t in training.requires.values() if t.key in self.broken]
        if blocked:
            why = self.broken[blocked[0].key]
            self.broken[training.key] = f"required defense '{blocked[0].name}' could not be trained: {why}"
            return
        refusal = training.defense.refuses(training.threat) if training.threat else None
        if refusal:
            self.broken[training.key] = f"refused: {refusal}"
            self.reporter.warn(f"{training.name}: {refusal}")
            return
        try:
            self.train(training)
        except StorageError:  # nothing else could be kept either
            raise
        except Exception as err:  # the runner's edge: the reason becomes the row's
            why = " ".join(str(err).split())
            if type(err).__module__.startswith(("torch._dynamo", "torch._inductor")):
                why = f"it cannot be compiled ({why[:300]}); --compile off trains it"
            self.broken[training.key] = why
            self.reporter.warn(f"training '{training.name}' failed: {self.broken[training.key]}")
            self.reporter.log(traceback.format_exc())
        finally:
            self.reporter.log_file = None

    def train(self, training: Training) -> None:
        """Train one network and store it, unless the store has it; one process at a time."""
        with self.store.lock("model", training.folder):
            if self.find("model", training.folder):
                name = f"{training.name} (seed {training.seed})"
                self.reporter.note(f"{name}: reused from {self.plan.out / training.folder}")
            else:
                self._train(training)
            self.store.discard(f"checkpoints/{training.folder}")

    def _train(self, training: Training) -> None:
        label = f"{training.name} (seed {training.seed})"
        logs = self.store.root / "artifacts" / "logs"
        with storing(logs):
            logs.mkdir(parents=True, exist_ok=True)
        self.reporter.log_file = logs / f"{training.folder}.log"
        self.reporter.log(f"{label} as '{training.folder}'")
        if training.defense is External:
            self._import(training)
            return
        self.reporter.note(f"{label}: training {training.spec.name} on {training.dataset}")
        data = self.plan.dataset.train.first(self.plan.train_images)
        engine = Engine(self.plan.device, self.plan.precision, training.seed, self.reporter, training.compiled)
        model = models.build(training.spec).to(self.plan.device)
        if self.plan.run.sync_batchnorm and processes.count() > 1:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        setup = Setup(
            model=model,
            threat=training.threat or NO_THREAT,
            config=training.config,
            num_classes=training.spec.num_classes,
            image_shape=(3, self.plan.run.attack_resolution, self.plan.run.attack_resolution),
            train_size=len(data),
            seed=training.seed,
            on_grid=data.on_grid,
            required={role: Frozen(self.network(other)) for role, other in training.requires.items()},
        )
        for teacher in setup.required.values():
            engine.compile(teacher.module)
        teachers = self._measured(training, engine, setup.required, data)  # outside every clock, it pays for compiling
        digests = {role: state_digest(teacher.module) for role, teacher in setup.required.items()}
        stages = training.defense(training.config).stages(setup)
        selection = self._selection(training, engine, model, stages[-1])
        records: list[StageRecord] = []
        metrics: Metrics = []
        for number, stage in enumerate(stages):
            last = number == len(stages) - 1
            # Trainings share stages: another process may be at this one for a training of its own.
            with nullcontext() if last else self.store.lock("stages", key_of(training.stage_recipe(stage))):
                record, lines = self._stage(training, engine, setup, stage, data, last, selection if last else None)
            for role, teacher in setup.required.items():
                if state_digest(teacher.module) != digests[role]:
                    raise ArtifactError(f"stage '{stage.name}' of '{training.name}' changed its teacher '{role}'")
            records.append(record)
            metrics += lines
            self.reporter.note(f"  {stage.name}: {self._told(record)}")
            for flag in record.flags:
                self.reporter.warn(f"{label}: stage '{stage.name}' raises '{flag}'")
        self._network = None
        processes.from_first(lambda: self._save(training, model, records, metrics, teachers, selection))

    def _measured(
        self, training: Training, engine: Engine, required: Mapping[str, Frozen], data: Images
    ) -> dict[str, dict[str, Any]]:
        """Measure every teacher as training will use it; warn of one that guesses, or should be robust and is not."""
        measured, declared = {}, training.defense(training.config).requires
        for role, teacher in required.items():
            seen = probe(engine, teacher.module, data, training.threat or NO_THREAT, TEACHER_IMAGES)
            name = training.requires[role].name
            measured[role] = {"network": name, "key": training.requires[role].key, **asdict(seen)}
            self.reporter.note(f"  teacher '{role}' ({name}): {seen} for training")
            classes = training.spec.num_classes
            if seen.guesses(classes):
                self.reporter.warn(
                    f"teacher '{role}' ({name}) is not clearly better than guessing one of {classes} classes: {seen}; "
                    f"check its normalization (a factory brings its own mean and std: "
                    f"--teacher {role}=FILE.py:FUNCTION=WEIGHTS) and the order of its classes, or train it longer"
                )
            if seen.not_robust and plugins.load_defense(declared[role]).adversarial:
                self.reporter.warn(
                    f"teacher '{role}' ({name}) is not robust at {training.threat}: {seen}; "
                    f"'{training.name}' can learn no robustness from it"
                )
        return measured

    def _selection(self, training: Training, engine: Engine, model: nn.Module, last: Stage) -> Selection | None:
        """Return what watches the last stage for its best epoch, where images are held out for that."""
        count = self.plan.run.held_out
        if not count or not isinstance(last, Train) or not last.epochs:
            return None
        held_out = self.plan.dataset.train.last(count)
        return Selection(engine, model, held_out, training.threat or NO_THREAT, last.epochs)

    def _import(self, training: Training) -> None:
        """Put a network that came from elsewhere into the store, as it is."""
        model = models.build(training.spec).to(self.plan.device)
        if training.weights is not None:
            models.load_weights(model, training.weights)
        now = file_digest(training.weights) if training.weights else state_digest(model)
        if now != training.recipe["external"]:
            what = f"'{training.weights}'" if training.weights else f"what '{training.spec.name}' loads"
            raise ArtifactError(f"{what} has changed since this run began; start it again")
        processes.from_first(lambda: self._save(training, model, [], []))

    @staticmethod
    def _told(record: StageRecord) -> str:
        parts = [duration(record.seconds)]
        if record.epochs > 1:
            parts.append(f"{record.epochs} epochs, {record.seconds_per_epoch:.2f} s each")
        parts.append(f"{record.images_per_second:.0f} images/s")
        parts += [f"{name} {value:.3f}" for name, value in record.metrics.items()]
        return ", ".join(parts)

    def _stage(
        self,
        training: Training,
        engine: Engine,
        setup: Setup,
        stage: Stage,
        data: Images,
        last: bool,
        selection: Selection | None,
    ) -> tuple[StageRecord, Metrics]:
        """Run a stage, or take it from the store. The last stage's result is the trained model itself."""
        recipe = training.stage_recipe(stage)
        name = key_of(recipe)
        watch = Stopwatch(engine.device)
        metrics: Metrics = []

        def log(stage_name: str, epoch: int, values: dict[str, float]) -> None:
            metrics.extend((stage_name, epoch, k, v) for k, v in values.items())
            shown = ", ".join(f"{k} {v:.4g}" for k, v in values.items())
            self.reporter.detail(f"  {stage_name} epoch {epoch + 1}: {shown}")

        found = None if last else self.find("stages", name)
        if found:
            stored = json.loads((found / "record.json").read_text())
            if isinstance(stage, Produce):
                setup.produced[stage.name] = _produced(found, engine)
            else:
                objective = build_objective(stage, engine.device)
                objective.load_state_dict(load_file(found / "state.safetensors", device=engine.device))
                engine.compile(objective)  # as running it would: a later stage may use its network unregistered
            self.reporter.note(f"  {stage.name}: reused")
            return StageRecord(**stored["record"]), [tuple(line) for line in stored["metrics"]]
        states = Unfinished(self.store, f"checkpoints/{training.folder}/{name}")
        checkpoint = Checkpoint(states, 60 * self.plan.checkpoint_every, selection=selection)
        give_back_freed_memory()  # of a larger stage, whose peak would be this one's too
        if isinstance(stage, Produce):
            record, parts = run_produce(engine, stage, data, watch, checkpoint)
        else:
            record, objective = run_train(
                engine, stage, data, watch, log, checkpoint, selection.look if selection else None
            )

        def keep() -> None:
            with self.store.building("stages", name, recipe) as work:
                if isinstance(stage, Produce):
                    save_rows(parts, work / "array.npy")
                else:
                    save_tensors(objective.state_dict(), work / "state.safetensors")
                text = json.dumps({"record": asdict(record), "metrics": metrics})
                (work / "record.json").write_text(text)

        if not last:
            processes.from_first(keep)
            if isinstance(stage, Produce):
                parts.clear()  # one copy is enough, on disk
                setup.produced[stage.name] = _produced(self.store.folder("stages", name), engine)
            states.clear()
        interrupts.leave_if_asked()
        return record, metrics

    def _save(
        self,
        training: Training,
        model: nn.Module,
        records: list[StageRecord],
        metrics: Metrics,
        teachers: Mapping[str, dict[str, Any]] = MappingProxyType({}),
        selection: Selection | None = None,
    ) -> None:
        own = sum(r.seconds for r in records) if records else None  # unknown for an external network
        others = {k: t for k, t in training.closure().items() if k != training.key}
        required = {t.folder: self.timing(t)["own_seconds"] for t in others.values()}
        costs = [own, *required.values()]
        timing = {
            "stages": [
                {
                    **asdict(r),
                    "seconds_per_epoch": r.seconds_per_epoch,
                    "images_per_second": r.images_per_second,
                }
                for r in records
            ],
            "own_seconds": own,
            "whole_seconds": None if None in costs else sum(costs),
            "warmup_seconds": sum(r.warmup_seconds for r in records) if records else None,
            "peak_memory_bytes": max((r.peak_memory_bytes for r in records), default=None),
            "required": required,
            "teachers": dict(teachers),
            "selection": selection.record() if selection else None,
            "flags": [flag for r in records for flag in r.flags],
            "hardware": provenance.hardware(self.plan.device, self.plan.devices),
            "devices": self.plan.devices,
            "commit": provenance.commit(),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        config = {
            "defense": training.name,
            "defense_version": training.defense.version,
            "preset": self.plan.preset,
            "dataset": training.dataset,
            "data_digest": self.plan.data_digest,
            "train_images": training.recipe["train_images"],
            "held_out": training.recipe.get("held_out", 0),
            "resolution": self.plan.run.attack_resolution,
            "spec": asdict(training.spec),
            "config": asdict(training.config),
            "threat": asdict(training.threat) if training.threat else None,
            "seed": training.seed,
            "precision": self.plan.precision,
            "compiled": training.compiled,
            "threads": self.plan.threads,
            "devices": self.plan.devices,
            "sync_batchnorm": self.plan.run.sync_batchnorm,
            "torch": torch.__version__,
            "key": training.key,
        }
        with self.store.building("model", training.folder, training.recipe) as work:
            save_tensors(model.state_dict(), work / WEIGHT_FILES["last"])
            if selection:
                save_tensors(selection.weights, work / WEIGHT_FILES["best"])
            (work / "config.json").write_text(json.dumps(config, indent=1))
            (work / "timing.json").write_text(json.dumps(timing, indent=1))
            table = io.StringIO()
            csv.writer(table).writerows([("stage", "epoch", "metric", "value"), *metrics])
            (work / "metrics.csv").write_text(table.getvalue())
            if self.reporter.log_file is not None:
                shutil.move(self.reporter.log_file, work / "run.log")
                self.reporter.log_file = None

    def timing(self, training: Training) -> dict[str, Any]:
        """Return the timing record of a stored training; raises ArtifactError where it is gone."""
        folder = self.store.find("model", training.folder, "timing.json")
        if folder is None:
            raise ArtifactError(f"the trained '{training.name}' is not in '{self.plan.out}'; run it again")
        return json.loads((folder / "timing.json").read_text())  # type: ignore[no-any-return]

    def weights_digest(self, training: Training) -> str:
        """Return the first 16 digits of the SHA-256 of a stored network's weights."""
        return self.store.digest("model", training.folder, WEIGHT_FILES[training.selection])[:16]

    def network(self, training: Training) -> Prepared:
        """Load a trained network from the store, in eval mode on the device."""
        wanted = f"{training.key} {training.selection}"
        if self._network is None or self._network[0] != wanted:
            folder = self.find("model", training.folder)
            if folder is None:
                raise ArtifactError(f"the trained '{training.name}' is not in '{self.plan.out}'; run it again")
            model = models.build(replace(training.spec, pretrained=False)).to(self.plan.device)
            model.load_state_dict(load_file(folder / WEIGHT_FILES[training.selection], device=self.plan.device))
            self._network = (wanted, model.eval())
        return self._network[1]
