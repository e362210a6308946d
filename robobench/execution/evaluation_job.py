"""Evaluates the cells of a plan that are not in the store.

A failed cell becomes a record with its reason; the other cells continue. Several processes share the batches of a cell.
The batches are the same as with one process, so the outcomes are the same.
"""

from __future__ import annotations

import json
import time
import traceback
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor

from robobench.attack_engine.accelerated import MIN_COMPILED_BATCH, compile_for_search
from robobench.attack_engine.options import AttackOptions
from robobench.attack_engine.trace import Traces, average_traces, collect_traces, round_traces
from robobench.core import device
from robobench.core.console import PROGRESS_LINE_SECONDS
from robobench.core.formatting import format_duration
from robobench.core.module_state import attack_mode
from robobench.distributed import collectives, signals
from robobench.errors import StorageError
from robobench.evaluation import accuracy
from robobench.evaluation.model_checks import quick_model_checks, tell_about_masking
from robobench.evaluation.near_chance import near_chance_warning
from robobench.execution.adversarial_images import AdversarialImages
from robobench.execution.context import RunContext
from robobench.execution.evaluation_record import blank_record, budget_fields, uses_bf16_search
from robobench.execution.partial_outcomes import load_partial, save_partial
from robobench.execution.transfer_examples import TransferExamples
from robobench.models.wrapper import PreprocessedModel
from robobench.planning.plan import AttackSpec, Cell, ExternalModel, PlannedModel, TrainingJob
from robobench.results.checks import CHECKS
from robobench.results.confidence_sequence import is_narrow
from robobench.results.records import EvaluationRecord, FindingRecord
from robobench.results.statistics import to_bitstring
from robobench.store.artifacts import hash_recipe
from robobench.store.partial import PartialResults

CHECKED_IMAGES = 128  # test images of the quick model checks
COMPILE_MIN_PASSES = 500_000  # passes of an attack; compiling does not pay off for fewer
COMPILE_MAX_PARAMS = 5_000_000  # larger models are not faster compiled


class Evaluator:
    """Evaluates the cells of a plan."""

    def __init__(self, context: RunContext) -> None:
        self.context = context
        self.transfer, self.adversarial = TransferExamples(context), AdversarialImages(context)
        self._clean: dict[str, Tensor] = {}  # `_identity` of a model -> clean outcomes
        self._findings: dict[str, list[FindingRecord]] = {}  # `_identity` of a model -> quick model checks
        self.place, self.component = "", ""  # for messages: number of the cell, running part of an ensemble
        self.computed_cost = 0.0  # of the cells computed so far, not those of the store
        self._compiled: tuple[PreprocessedModel, PreprocessedModel | None] | None = None  # last model, compiled copy

    # --- one cell -------------------------------------------------------------------------------

    def evaluate_all(self) -> set[str]:
        """Evaluate every cell and return their keys. The transfer source, which is in memory, comes first."""
        cells, keys = self.context.plan.cells(), set[str]()
        begun = last_line = time.monotonic()
        before = self.computed_cost
        costs = [self._cost(cell) for cell in cells]
        for number, cell in enumerate(cells, 1):
            self.place = f"[{number}/{len(cells)}] "
            keys.add(self.evaluate(cell)["key"])
            done, now = self.computed_cost - before, time.monotonic()
            if done and now - last_line >= PROGRESS_LINE_SECONDS and number < len(cells):
                last_line = now
                left = (now - begun) / done * sum(costs[number:])
                self.context.reporter.info(
                    f"{number} of {len(cells)} cells are finished, at most about {format_duration(left)} left in all"
                )
        return keys

    def _cost(self, cell: Cell) -> float:
        """Return the passes of a cell if no image is misclassified before the end of the attack."""
        return (cell.spec.attack.cost or 1.0) if cell.protocol == "white-box" else 1.0

    def evaluate(self, cell: Cell) -> EvaluationRecord:
        """Return the record of a cell, from the store or by evaluating it. A failed cell has a record too.

        Waits if another process evaluates the same cell.
        """
        key = self.key(cell)
        with self.context.store.lock("evaluations", key):
            record = self.finished(cell, key)
            record = self._update(cell, key, record) if record is not None else self._evaluate(cell, key)
        self.context.tracking.cell(cell.model, record)
        signals.raise_if_stop_requested()
        return record

    def key(self, cell: Cell) -> str:
        """Return the key of a cell's record."""
        return hash_recipe(self._recipe(cell))

    def _recipe(self, cell: Cell) -> dict[str, Any]:
        plan, model, attack = self.context.plan, cell.model, cell.spec.attack
        bf16_model = isinstance(model, ExternalModel) and plan.precision == "bf16"
        return {
            "model": model.key,
            "selection": model.selection,
            "transfer_source": plan.transfer_key if cell.protocol == "transfer" else None,
            "attack": cell.spec.recipe,
            "protocol": cell.protocol,
            "data": plan.dataset.test_digest,
            "examples": plan.examples,
            "eval_batch_size": plan.run.eval_batch_size,
            **({"until": plan.until} if plan.until is not None else {}),
            **({"search": "bf16"} if uses_bf16_search(attack, cell.protocol, plan.precision) else {}),
            **({"precision": "bf16"} if bf16_model else {}),
            **({"randomness": asdict(plan.randomness)} if plan.randomness else {}),
            **({"bpda": plan.bpda.key} if plan.bpda and cell.protocol == "white-box" else {}),
            **plan.environment(),
        }

    def _sources(self, cell: Cell) -> tuple[PlannedModel, ...]:
        return self.context.plan.transfer_sources if cell.protocol == "transfer" else ()

    def finished(self, cell: Cell, key: str) -> EvaluationRecord | None:
        """Return the record of a finished cell of the same weights. On a GPU, two trainings give different weights."""
        context = self.context
        found = context.find("evaluations", key)
        if found is None:
            return None
        record: EvaluationRecord = collectives.on_rank_zero(lambda: json.loads((found / "record.json").read_text()))
        if record.get("status") != "ok":
            return None
        for models, digest in (
            ((cell.model,), record["weights_digest"]),
            (self._sources(cell), record["source_digest"]),
        ):
            stored = all(context.store.folder("model", model.folder).is_dir() for model in models)
            if models and stored and context.digest_of(models) != digest:
                return None
        if self.adversarial.keeps(cell) and not self.adversarial.is_complete(key, record["weights_digest"]):
            return None
        return record

    def _update(self, cell: Cell, key: str, record: EvaluationRecord) -> EvaluationRecord:
        """Adapt a finished record to this plan: an earlier run's baseline may be a requested model now."""
        updated: EvaluationRecord = {**record, "config_digest": cell.model.config_digest}
        if not self.context.plan.is_control(cell.model):
            updated["is_control"] = False
        if updated != record:
            self._keep(key, cell, updated)
        return updated

    def _evaluate(self, cell: Cell, key: str) -> EvaluationRecord:
        context, failures = self.context, self.context.failures
        models = (cell.model, *self._sources(cell))
        for model in models:
            if model.key not in failures and context.find("model", model.folder) is None:
                failures[model.key] = f"the trained model '{model.name}' is no longer in the store; rerun the command"
        record = blank_record(context, cell, key)
        reasons = [failures[k] for k in (*(model.key for model in models), key) if k in failures]
        if reasons:
            record["reason"] = reasons[0]
            record["status"] = "refused" if reasons[0].startswith("refused") else "failed"
        else:
            try:
                self._attack(cell, key, record)
            except StorageError:  # no other result could be stored either
                raise
            except Exception as err:  # becomes the reason in the row
                record.update({"status": "failed", "reason": " ".join(str(err).split())})
                context.reporter.log(traceback.format_exc())
        if record["status"] != "ok":
            what = f"{cell.model.name}, {cell.spec.attack.name} {cell.spec.threat}, {cell.protocol}"
            context.reporter.warning(f"failed: {what}: {record['reason']}")
        self._keep(key, cell, record)
        if record["status"] == "ok":
            context.store.discard(self._partial_kind(cell, key))
        return record

    def _keep(self, key: str, cell: Cell, record: EvaluationRecord) -> None:
        def keep() -> None:
            with self.context.store.create("evaluations", key, self._recipe(cell)) as work:
                (work / "record.json").write_text(json.dumps(record, indent=1))

        collectives.on_rank_zero(keep)

    def _partial_kind(self, cell: Cell, key: str) -> str:
        """Return the folder of an unfinished evaluation; it depends on the weights."""
        models = (cell.model, *self._sources(cell))
        return "-".join([f"partial/{key}", *(self.context.weights_digest(m)[:8] for m in models)])

    def write_adversarial(self) -> None:
        """Write the file of --save-adversarial; a failed attack has no part in it."""
        if self.context.plan.save_adversarial is not None:
            cells = [cell for cell in self.context.plan.cells() if self.adversarial.keeps(cell)]
            self.adversarial.write([r for cell in cells if (r := self.finished(cell, self.key(cell))) is not None])

    # --- the attack -----------------------------------------------------------------------------

    def _attack(self, cell: Cell, key: str, record: EvaluationRecord) -> None:
        """Attack batch by batch and complete the record. Each finished batch is saved before the next one."""
        plan = self.context.plan
        compiled = self._compiled_model(cell)
        record["compiled_search"] = compiled is not None
        saves = PartialResults(self.context.store, self._partial_kind(cell, key))
        bits, traces, seconds_before = collectives.on_rank_zero(lambda: load_partial(saves))
        keeps, weights = self.adversarial.keeps(cell), record["weights_digest"]
        if keeps and not self.adversarial.is_complete(key, weights, len(bits)):
            bits, traces, seconds_before = [], {}, 0.0
        begun = time.perf_counter() - seconds_before
        clean = self.clean_outcomes(cell.model)
        batches = accuracy.batch_indices(plan.examples, plan.run.eval_batch_size)
        attack_batch = self._batch_attack(cell, compiled, clean, batches)
        label = f"{self.place}{cell.model.name}: {cell.spec.attack.name} {cell.spec.threat} {cell.protocol}"
        self.component = ""

        def describe() -> str:
            return f"{label}, now {self.component}" if self.component else label

        left = range(len(bits), len(bits) if self._is_known(bits) else len(batches))
        with self.context.reporter.progress_bar(describe, plan.examples) as advance:
            advance(sum(map(len, batches[: left.start])))
            for number, result in zip(left, collectives.map_across_ranks(left, attack_batch), strict=True):
                outcomes, trace, adv = result
                if keeps:
                    self.adversarial.keep(key, weights, number, adv)
                bits.append(to_bitstring(outcomes))
                traces = average_traces([traces, trace])
                seconds = time.perf_counter() - begun
                collectives.on_rank_zero(partial(save_partial, saves, bits, traces, seconds))
                signals.raise_if_stop_requested()
                advance(len(batches[number]))
                if self._is_known(bits):
                    break
        self.computed_cost += self._cost(cell)
        record.update(budget_fields(plan, cell.spec.attack, cell.protocol))  # type: ignore[typeddict-item]
        record.update(
            {
                "status": "ok",
                "clean_bits": to_bitstring(clean)[: len("".join(bits))],
                "robust_bits": "".join(bits),
                "seconds": time.perf_counter() - begun,
                "traces": round_traces(traces),
                "findings": self.findings(cell.model),
            }
        )
        if plan.until is not None:
            record.update({"examples": len("".join(bits)), "population": plan.examples})
        free = [part.name for part in cell.spec.attack.components if part.gradient_free]
        if free and cell.protocol == "white-box":
            found = [traces[name] for name in free if name in traces]
            record["black_box_found"] = sum(round(trace["images"] * trace["success_rate"][-1]) for trace in found)
        if sources := self._sources(cell):
            record["source_findings"] = [self._source_finding(source) for source in sources]

    def _is_known(self, bits: list[str]) -> bool:
        """Return whether the accuracy is known within --until, given the outcomes of the finished batches."""
        plan, outcomes = self.context.plan, "".join(bits)
        if plan.until is None or not outcomes:
            return False
        return is_narrow(outcomes.count("1"), len(outcomes), plan.examples, plan.until)

    def _batch_attack(
        self, cell: Cell, compiled: PreprocessedModel | None, clean: Tensor, batches: list[Tensor]
    ) -> Any:
        """Return a function that maps a batch number to outcomes (B,) bool, traces and kept images (S, C, H, W)."""
        plan, data, attack = self.context.plan, self.context.dataset.test, cell.spec.attack
        warn = self.context.on_oom_split(cell.model, attack.name)
        folders = self.transfer.folders(cell.spec) if cell.protocol == "transfer" else []
        module, keeps = self.context.load_attacked(cell.model), self.adversarial.keeps(cell)
        if cell.protocol == "white-box":
            first = batches[0][:CHECKED_IMAGES]
            tell_about_masking(attack, module, data.images(first), data.labels[first].to(plan.device))

        def white_box(number: int) -> tuple[Tensor, Traces, Tensor]:
            options = AttackOptions(
                bf16_search=uses_bf16_search(attack, cell.protocol, plan.precision),
                compiled=(module, compiled) if compiled is not None else None,
                traces={},
                on_oom_split=warn,
                on_component=partial(setattr, self, "component"),
            )
            index = batches[number]
            found = accuracy.white_box_examples(module, attack, data, index, clean[index], plan.device, options)
            outcomes, adv = found
            return outcomes, collect_traces(options.traces or {}), adv.cpu() if keeps else adv[:0].cpu()

        def transfer(number: int) -> tuple[Tensor, Traces, Tensor]:
            index, adv = batches[number], self.transfer.load(folders[number])
            return accuracy.transfer_outcomes(module, adv, data.labels[index], clean[index], warn), {}, adv[:0].cpu()

        return white_box if cell.protocol == "white-box" else transfer

    def prepare_transfer(self, spec: AttackSpec) -> None:
        """Compute the transfer examples of an attack before the cells that need them.

        If this fails, it fails again in those cells, which record the reason.
        """
        plan = self.context.plan
        if any(source.key in self.context.failures for source in plan.transfer_sources):
            return
        if all(self.finished(c, self.key(c)) for c in plan.cells() if c.spec == spec and c.protocol == "transfer"):
            return
        try:
            self.transfer.folders(spec)
        except StorageError:  # no other result could be stored either
            raise
        except Exception:
            self.context.reporter.log(traceback.format_exc())

    # --- shared by all cells of a model ---------------------------------------------------------

    def _identity(self, model: PlannedModel) -> str:
        """Name a model in memory. Equal weights are not enough: a wrapper of a network may compute something else."""
        return f"{model.key} {model.selection} {self.context.weights_digest(model)}"

    def clean_outcomes(self, model: PlannedModel) -> Tensor:
        """Return whether each clean test image is classified correctly: (N,) bool. Computed once per model."""
        identity = self._identity(model)
        if identity not in self._clean:
            module, plan = self.context.load_attacked(model), self.context.plan
            data, warn = self.context.dataset.test, self.context.on_oom_split(model, "clean images")

            def outcomes(index: Tensor) -> Tensor:
                return accuracy.clean_outcomes(module, data, index, plan.device, warn)

            batches = accuracy.batch_indices(plan.examples, plan.run.eval_batch_size)
            correct = self._clean[identity] = torch.cat(list(collectives.map_across_ranks(batches, outcomes)))
            labels = data.labels[: plan.examples].cpu()
            trained, classes = isinstance(model, TrainingJob), plan.dataset.num_classes
            warning = near_chance_warning(model.name, float(correct.float().mean()), labels, classes, trained)
            if warning is not None:
                self.context.reporter.warning(warning)
        return self._clean[identity]

    def findings(self, model: PlannedModel) -> list[FindingRecord]:
        """Return the quick model checks on the first test images. Computed once per model, by rank 0."""
        identity, module = self._identity(model), self.context.load_model(model)
        plan, data = self.context.plan, self.context.dataset.test

        def check() -> list[FindingRecord]:
            index = torch.arange(min(CHECKED_IMAGES, plan.run.eval_batch_size, plan.examples))
            threats = [spec.threat for spec in plan.attacks]
            found = quick_model_checks(module, data.images(index), data.labels[index].to(plan.device), threats)
            return [f.record() for f in found]

        if identity not in self._findings:
            try:
                self._findings[identity] = collectives.on_rank_zero(check)
            except Exception as err:  # out of memory, for instance
                why = " ".join(str(err).split())
                self._findings[identity] = [{"flag": "not-checked", "raised": True, "measured": why}]
                self.context.reporter.warning(f"gradient-masking checks failed for {model.name}: {why}")
        return self._findings[identity]

    def _source_finding(self, source: PlannedModel) -> FindingRecord:
        """Check a transfer source as every model, and that it classifies the images."""
        accuracy = float(self.clean_outcomes(source).float().mean())
        chance = 1 / self.context.plan.dataset.num_classes
        checks = {name: check.unreliable for name, check in CHECKS.items()}
        signs = [f["flag"] for f in self.findings(source) if f["raised"] and checks[f["flag"]]]
        weak = accuracy < chance + 0.1 * (1 - chance)
        text = f"{source.name}: {100 * accuracy:.1f} % clean; raised: {', '.join(signs) or 'none'}"
        return {"flag": "weak-source", "raised": weak or bool(signs), "measured": text}

    def _compiled_model(self, cell: Cell) -> PreprocessedModel | None:
        """Return a compiled copy of the model for a long white-box attack; None if it does not pay off or fails."""
        plan, attack = self.context.plan, cell.spec.attack
        module = self.context.load_model(cell.model)
        if (
            cell.protocol != "white-box"
            or plan.randomness is not None
            or plan.bpda is not None
            or plan.device != "cpu"  # measured to be faster on a CPU only
            or not any(part.supports_compile for part in (attack, *attack.components))
            or uses_bf16_search(attack, cell.protocol, plan.precision)  # needs other graphs
            or (attack.cost or 0) * plan.examples < COMPILE_MIN_PASSES
            or sum(p.numel() for p in module.parameters()) > COMPILE_MAX_PARAMS
            or not device.has_compiler()
        ):
            return None
        available = min(2 * MIN_COMPILED_BATCH, plan.run.eval_batch_size, plan.examples)
        images = self.context.dataset.test.images(torch.arange(available))
        # torch.compile treats a batch size that equals another dimension as the same variable.
        sizes = range(MIN_COMPILED_BATCH + 1, 2 * MIN_COMPILED_BATCH)
        count = next(n for n in sizes if n not in images.shape[1:])
        if len(images) < count:
            return None
        if self._compiled is None or self._compiled[0] is not module:
            compiled, reporter, name = None, self.context.reporter, cell.model.name
            reporter.info(f"compiling {name} for long attacks; this can take a minute")
            try:
                with attack_mode(module):
                    compiled = compile_for_search(module, images[:count])
            except Exception as err:  # compiling only saves time
                reporter.warning(f"{name} is attacked without torch.compile: {' '.join(str(err).split())[:300]}")
            self._compiled = (module, compiled)
        return self._compiled[1]
