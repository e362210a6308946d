"""From plan to rows: the one room that knows both training and evaluation.

Every step asks the store first. A cell that fails becomes a row with its reason; the rest goes on.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from robobench import evaluation, models, provenance
from robobench.api import Frozen, Produce, Produced, Setup, Stage
from robobench.errors import ArtifactError
from robobench.evaluation import Bits, pack
from robobench.plan import NO_THREAT, Cell, External, Plan, Training
from robobench.progress import Reporter, duration
from robobench.store import Store, key_of, write_atomic
from robobench.timing import Stopwatch
from robobench.training import Engine, StageRecord, build_objective, run_produce, run_train

Metrics = list[tuple[str, int, str, float]]  # stage, epoch, name, value


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a state dict as safetensors, each tensor contiguous and its own."""
    save_file({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}, path)


class Runner:
    """Carries out a plan in one process."""

    def __init__(self, plan: Plan, reporter: Reporter) -> None:
        self.plan, self.reporter = plan, reporter
        self.store = Store(plan.out)
        self.broken: dict[str, str] = {}  # training key -> why there is no such network
        self._network: tuple[str, nn.Module] | None = None  # the last one used stays in memory
        self._clean: dict[str, Tensor] = {}  # weights digest -> clean bits
        torch.set_num_threads(plan.threads)

    def announce(self) -> None:
        """Say what is about to happen, and what it is not."""
        plan = self.plan
        self.reporter.note(
            f"{plan.dataset.name} (data {plan.data_digest}), preset {plan.preset}, {plan.device}, "
            f"{plan.precision}, {plan.threads} threads"
        )
        for name, used, have in (
            ("training", plan.run.train_images, len(plan.dataset.train or ())),
            ("test", plan.examples, len(plan.dataset.test)),
        ):
            if 0 < used < have:
                self.reporter.note(f"note: this run uses the first {used} of {have} {name} images")

    # --- training -------------------------------------------------------------------------------

    def train_all(self) -> None:
        """Train what is missing, prerequisites first; a failure stops only what needs that network."""
        for training in self.plan.order():
            blocked = [t.name for t in training.requires.values() if t.key in self.broken]
            if blocked:
                self.broken[training.key] = f"required defense '{blocked[0]}' could not be trained"
                continue
            refusal = training.defense.refuses(training.threat) if training.threat else None
            if refusal:
                self.broken[training.key] = f"refused: {refusal}"
                self.reporter.warn(f"{training.name}: {refusal}")
                continue
            try:
                self.train(training)
            except Exception as err:  # the runner's edge: the reason becomes the row's
                self.broken[training.key] = " ".join(str(err).split())
                self.reporter.warn(f"training '{training.name}' failed: {self.broken[training.key]}")
                self.reporter.log(traceback.format_exc())
            finally:
                self.reporter.log_file = None

    def train(self, training: Training) -> None:
        """Train one network and store it, unless the store has it."""
        label = f"{training.name} (seed {training.seed})"
        if self.store.find("model", training.folder):
            self.reporter.note(f"{label}: reused from {self.plan.out / training.folder}")
            return
        logs = self.store.root / "artifacts" / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        self.reporter.log_file = logs / f"{training.folder}.log"
        self.reporter.log(f"{label} as '{training.folder}'")
        if training.defense is External:
            self._import(training)
            return
        self.reporter.note(f"{label}: training {training.spec.name} on {training.dataset}")
        data = self.plan.dataset.train.first(self.plan.train_images)
        engine = Engine(self.plan.device, self.plan.precision, training.seed, self.reporter)
        model = models.build(training.spec).to(self.plan.device)
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
        stages = training.defense(training.config).stages(setup)
        records: list[StageRecord] = []
        metrics: Metrics = []
        for number, stage in enumerate(stages):
            last = number == len(stages) - 1
            record, lines = self._stage(training, engine, setup, stage, data, last)
            records.append(record)
            metrics += lines
            self.reporter.note(f"  {stage.name}: {self._told(record)}")
            for flag in record.flags:
                self.reporter.warn(f"{label}: stage '{stage.name}' raises '{flag}'")
        self._network = None
        self._save(training, model, records, metrics)

    def _import(self, training: Training) -> None:
        """Put a network that came from elsewhere into the store, as it is."""
        model = models.build(training.spec).to(self.plan.device)
        if training.weights is not None:
            models.load_weights(model, training.weights)
        self._save(training, model, [], [])

    @staticmethod
    def _told(record: StageRecord) -> str:
        parts = [duration(record.seconds)]
        if record.epochs > 1:
            parts.append(f"{record.epochs} epochs, {record.seconds_per_epoch:.2f} s each")
        parts.append(f"{record.images_per_second:.0f} images/s")
        parts += [f"{name} {value:.3f}" for name, value in record.metrics.items()]
        return ", ".join(parts)

    def _stage(
        self, training: Training, engine: Engine, setup: Setup, stage: Stage, data: Any, last: bool
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

        found = None if last else self.store.find("stages", name)
        if found:
            stored = json.loads((found / "record.json").read_text())
            if isinstance(stage, Produce):
                array = np.load(found / "array.npy", mmap_mode="r", allow_pickle=False)
                setup.produced[stage.name] = Produced(array, engine.device)
            else:
                objective = build_objective(stage, engine.device)
                objective.load_state_dict(load_file(found / "state.safetensors", device=engine.device))
            self.reporter.note(f"  {stage.name}: reused")
            return StageRecord(**stored["record"]), [tuple(line) for line in stored["metrics"]]
        if isinstance(stage, Produce):
            record, array = run_produce(engine, stage, data, watch)
            setup.produced[stage.name] = Produced(array, engine.device)
        else:
            record, objective = run_train(engine, stage, data, watch, log)
        if not last:
            with self.store.building("stages", name, recipe) as work:
                if isinstance(stage, Produce):
                    np.save(work / "array.npy", array, allow_pickle=False)
                else:
                    save_tensors(objective.state_dict(), work / "state.safetensors")
                text = json.dumps({"record": asdict(record), "metrics": metrics})
                (work / "record.json").write_text(text)
        return record, metrics

    def _save(self, training: Training, model: nn.Module, records: list[StageRecord], metrics: Metrics) -> None:
        own = sum(r.seconds for r in records) if records else None  # unknown for an external network
        others = {k: t for k, t in training.closure().items() if k != training.key}
        required = {t.folder: self.timing(t)["own_seconds"] for t in others.values()}
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
            "whole_seconds": None if own is None else own + sum(required.values()),
            "warmup_seconds": sum(r.warmup_seconds for r in records) if records else None,
            "peak_memory_bytes": max((r.peak_memory_bytes for r in records), default=None),
            "required": required,
            "flags": [flag for r in records for flag in r.flags],
            "hardware": provenance.hardware(self.plan.device),
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
            "resolution": self.plan.run.attack_resolution,
            "spec": asdict(training.spec),
            "config": asdict(training.config),
            "threat": asdict(training.threat) if training.threat else None,
            "seed": training.seed,
            "precision": self.plan.precision,
            "threads": self.plan.threads,
            "torch": torch.__version__,
            "key": training.key,
        }
        with self.store.building("model", training.folder, training.recipe) as work:
            save_tensors(model.state_dict(), work / "model.safetensors")
            (work / "config.json").write_text(json.dumps(config, indent=1))
            (work / "timing.json").write_text(json.dumps(timing, indent=1))
            table = io.StringIO()
            csv.writer(table).writerows([("stage", "epoch", "metric", "value"), *metrics])
            (work / "metrics.csv").write_text(table.getvalue())
            if self.reporter.log_file is not None:
                shutil.move(self.reporter.log_file, work / "run.log")
                self.reporter.log_file = None

    def timing(self, training: Training) -> dict[str, Any]:
        """Return the timing record of a stored training."""
        path = self.store.folder("model", training.folder) / "timing.json"
        return json.loads(path.read_text())  # type: ignore[no-any-return]

    def weights_digest(self, training: Training) -> str:
        """Return the first 16 digits of the SHA-256 of a stored network's weights."""
        return self.store.digest("model", training.folder, "model.safetensors")[:16]

    def network(self, training: Training) -> nn.Module:
        """Load a trained network from the store, in eval mode on the device."""
        if self._network is None or self._network[0] != training.key:
            folder = self.store.find("model", training.folder)
            if folder is None:
                raise ArtifactError(f"the trained '{training.name}' is not in '{self.plan.out}'; run it again")
            model = models.build(training.spec).to(self.plan.device)
            model.load_state_dict(load_file(folder / "model.safetensors", device=self.plan.device))
            self._network = (training.key, model.eval())
        return self._network[1]

    # --- evaluation -----------------------------------------------------------------------------

    def evaluate_all(self) -> set[str]:
        """Fill every cell, the source's first, so that its examples are made while it is in memory.

        Returns:
            The keys of the records.
        """
        return {self.evaluate(*item)["key"] for item in self.plan.work()}

    def evaluate(self, training: Training, cell: Cell, protocol: str) -> dict[str, Any]:
        """Return the record of one cell, from the store or by running it; a failure becomes its record."""
        source = self.plan.source if protocol == "transfer" else None
        recipe = self._recipe(training, cell, protocol)
        name = key_of(recipe)
        found = self.store.find("evaluations", name)
        if found:
            record: dict[str, Any] = json.loads((found / "record.json").read_text())
            if record["status"] == "ok":
                return record
        record = {"key": name, **self._blank_record(training, cell, protocol, source)}
        needed = [t for t in (training, source) if t is not None and t.key in self.broken]
        begun = time.perf_counter()
        if needed:
            record["reason"] = self.broken[needed[0].key]
            record["status"] = "refused" if record["reason"].startswith("refused") else "failed"
        else:
            try:
                clean, robust = self._bits(training, cell, protocol, name)
                record.update(clean_bits=pack(clean), robust_bits=pack(robust), status="ok")
                record["seconds"] = time.perf_counter() - begun
                record["budget"] = cell.attack.budget  # may depend on the number of classes it met
            except Exception as err:  # the runner's edge: the reason becomes the row's
                record.update(status="failed", reason=" ".join(str(err).split()))
                self.reporter.log(traceback.format_exc())
        if record["status"] != "ok":
            self.reporter.warn(
                f"{training.name} under {cell.attack.name} {cell.threat} ({protocol}): {record['reason']}"
            )
        with self.store.building("evaluations", name, recipe) as work:
            (work / "record.json").write_text(json.dumps(record, indent=1))
        if record["status"] == "ok":
            self._partial(name).unlink(missing_ok=True)
        return record

    def _recipe(self, training: Training, cell: Cell, protocol: str) -> dict[str, Any]:
        source = self.plan.source if protocol == "transfer" else None
        return {
            "model": training.key,
            "source": source.key if source else None,
            "attack": cell.recipe(),
            "protocol": protocol,
            "data": self.plan.data_digest,
            "examples": self.plan.examples,
            "chunk": self.plan.run.chunk,
            **self.plan.environment(),
        }

    def _blank_record(self, training: Training, cell: Cell, protocol: str, source: Training | None) -> dict[str, Any]:
        attack = cell.attack
        there = training.key not in self.broken
        return {
            "training": training.folder,
            "dataset": training.dataset,
            "data_digest": self.plan.data_digest,
            "model": training.spec.name,
            "image_size": training.spec.image_size,
            "stem": training.spec.stem,
            "interpolation": training.spec.interpolation,
            "preset": self.plan.preset,
            "config_digest": key_of({**training.recipe, "seed": None, "requires": None}),
            "defense": training.name,
            "defense_version": training.defense.version,
            "train_norm": training.threat.norm if training.threat else None,
            "train_eps": training.threat.eps if training.threat else None,
            "attack": attack.name,
            "attack_version": attack.version,
            "threat_norm": cell.threat.norm,
            "threat_eps": cell.threat.eps,
            "relative_step": attack.relative_step,
            "stop": "never" if protocol == "transfer" else attack.stop,
            "budget": attack.budget,
            "protocol": protocol,
            "source_digest": self.weights_digest(source) if source and source.key not in self.broken else None,
            "weights_digest": self.weights_digest(training) if there else None,
            "seed": training.seed,
            "selection": "last",
            "examples": self.plan.examples,
            "precision": self.plan.precision,
            "threads": self.plan.threads,
            "hardware": provenance.hardware(self.plan.device),
            "torch_version": torch.__version__,
            "commit": provenance.commit(),
            "control": training.key in {t.key for t in self.plan.controls},
            "status": "failed",
            "reason": "",
            "clean_bits": None,
            "robust_bits": None,
            "seconds": None,
        }

    def _partial(self, name: str) -> Path:
        return self.store.root / "artifacts" / "partial" / f"{name}.json"

    def clean(self, training: Training) -> Tensor:
        """Return which of the test images a network gets right when clean; measured once."""
        digest = self.weights_digest(training)
        if digest not in self._clean:
            model = self.network(training)
            self._clean[digest] = torch.cat(
                [
                    evaluation.clean_bits(model, self.plan.dataset.test, index, self.plan.device)
                    for index in evaluation.chunks(self.plan.examples, self.plan.run.chunk)
                ]
            )
        return self._clean[digest]

    def _bits(self, training: Training, cell: Cell, protocol: str, name: str) -> tuple[Tensor, Tensor]:
        """Attack chunk by chunk; each finished chunk is on disk before the next begins."""
        plan, data = self.plan, self.plan.dataset.test
        partial = self._partial(name)
        partial.parent.mkdir(parents=True, exist_ok=True)
        done: list[str] = json.loads(partial.read_text()) if partial.exists() else []
        clean = self.clean(training)
        with self.reporter.bar(f"{training.name}: {cell.attack.name} {cell.threat} {protocol}", plan.examples) as bar:
            for number, index in enumerate(evaluation.chunks(plan.examples, plan.run.chunk)):
                if number >= len(done):
                    right = clean[index]
                    if protocol == "white-box":
                        bits = evaluation.white_box_bits(
                            self.network(training), cell.attack, data, index, right, plan.device
                        )
                    else:
                        adv = self.transfer_chunk(cell, index, number)
                        bits = evaluation.transfer_bits(self.network(training), adv, data.labels[index], right)
                    done.append(pack(bits))
                    write_atomic(partial, json.dumps(done))
                bar(len(index))
        return clean, torch.tensor(Bits.read("".join(done)).values)

    def transfer_chunk(self, cell: Cell, index: Tensor, number: int) -> Tensor:
        """Return a chunk of transfer examples, made once on the source and kept as float32."""
        assert self.plan.source is not None
        recipe = {
            "source": self.plan.source.key,
            "attack": cell.recipe(),
            "data": self.plan.data_digest,
            "examples": [int(index[0]), int(index[-1])],
            **self.plan.environment(),
        }
        name = key_of(recipe)
        folder = self.store.find("transfer", name)
        if folder is None:
            source = self.network(self.plan.source)
            adv = evaluation.transfer_examples(source, cell.attack, self.plan.dataset.test, index, self.plan.device)
            with self.store.building("transfer", name, recipe) as work:
                save_tensors({"adv": adv}, work / "examples.safetensors")
            return adv
        return load_file(folder / "examples.safetensors", device=self.plan.device)["adv"]
