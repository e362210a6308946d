"""From plan to rows: trains what is missing, then fills every attacked cell; each step asks the store first.

A cell that fails becomes a row with its reason; the rest goes on. Several processes take a cell's chunks in turns: the
same chunks as one alone, so the same bits.
"""

from __future__ import annotations

import json
import time
import traceback
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from robobench import evaluation, interrupts, processes, provenance
from robobench.api import Attack
from robobench.architectures import Prepared
from robobench.checkpoint import Unfinished, evaluated, save_evaluated, save_tensors
from robobench.curves import Curves, gather, join, rounded
from robobench.doctor import examine
from robobench.errors import StorageError
from robobench.inner import frozen
from robobench.plan import Cell, External, Plan, Training
from robobench.progress import Reporter
from robobench.search import halvings, recorded
from robobench.standin import FEW, compiled, in_bfloat16, stepping_on
from robobench.statistics import ROUNDED, Bits, pack
from robobench.store import key_of
from robobench.trainer import Trainer

EXAMINED = 128  # images that each network is examined on, beside its attacks
COMPILED, SMALL = 500_000, 5_000_000  # passes that make a search worth compiling; the most parameters of a network


class Runner(Trainer):
    """Carries out a plan."""

    def __init__(self, plan: Plan, reporter: Reporter) -> None:
        super().__init__(plan, reporter)
        self._clean: dict[str, Tensor] = {}  # weights digest -> clean bits
        self._findings: dict[str, list[dict[str, Any]]] = {}  # weights digest -> what the doctor saw
        self._compiled: tuple[Prepared, Prepared | None] | None = None  # the last network compiled, and its twin

    def announce(self) -> None:
        """Say what is about to happen, and what it is not."""
        plan = self.plan
        self.reporter.note(
            f"{plan.dataset.name} (data {plan.data_digest}), preset {plan.preset}, {plan.device}, "
            f"{plan.precision}, {plan.threads} threads"
            + (f" in each of {plan.devices} processes" if plan.devices > 1 else "")
        )
        for name, used, have in (
            ("training", plan.run.train_images, len(plan.dataset.train or ())),
            ("test", plan.examples, len(plan.dataset.test)),
        ):
            if 0 < used < have:
                self.reporter.note(f"note: this run uses the first {used} of {have} {name} images")

    def evaluate_all(self) -> set[str]:
        """Fill every cell, the source's first, so that its examples are made while it is in memory.

        Returns:
            The keys of the records.
        """
        return {self.evaluate(*item)["key"] for item in self.plan.work()}

    def evaluate(self, training: Training, cell: Cell, protocol: str) -> dict[str, Any]:
        """Return the record of one cell, from the store or by running it; a failure becomes its record.

        Another process that works on the same cell is waited for.
        """
        recipe = self._recipe(training, cell, protocol)
        with self.store.lock("evaluations", key_of(recipe)):
            record = self._evaluate(training, cell, protocol, recipe)
        interrupts.leave_if_asked()
        return record

    def _evaluate(self, training: Training, cell: Cell, protocol: str, recipe: dict[str, Any]) -> dict[str, Any]:
        source = self.plan.source if protocol == "transfer" else None
        name = key_of(recipe)
        finished = self._finished(name, training, source)
        if finished is not None:
            now: dict[str, Any] = {"config_digest": training.config_digest}
            if not self._is_control(training):  # perhaps one of an earlier request, now asked for
                now["control"] = False
            if finished != {**finished, **now}:
                finished |= now
                self._keep(name, recipe, finished)
            return finished
        for other in (t for t in (training, source) if t is not None and t.key not in self.broken):
            if self.find("model", other.folder) is None:
                self.broken[other.key] = f"the trained '{other.name}' vanished from the store; run it again"
        record = {"key": name, **self._blank_record(training, cell, protocol, source)}
        needed = [key for key in (training.key, *([source.key] if source else []), name) if key in self.broken]
        if needed:
            record["reason"] = self.broken[needed[0]]
            record["status"] = "refused" if record["reason"].startswith("refused") else "failed"
        else:
            try:
                twin = self._twin(training, cell, protocol)
                record["compiled_search"] = twin is not None
                with self._halvings(f"{training.name} under {cell.attack.name}"):
                    clean, robust, went, record["seconds"] = self._bits(training, cell, protocol, name, twin)
                record.update(clean_bits=pack(clean), robust_bits=pack(robust), curves=rounded(went), status="ok")
                record["budget"] = self._budget(cell.attack, protocol)  # may depend on the number of classes it met
                record["findings"] = self.findings(training)
            except StorageError:  # nothing else could be kept either
                raise
            except Exception as err:  # the runner's edge: the reason becomes the row's
                record.update(status="failed", reason=" ".join(str(err).split()))
                self.reporter.log(traceback.format_exc())
        if record["status"] != "ok":
            self.reporter.warn(
                f"{training.name} under {cell.attack.name} {cell.threat} ({protocol}): {record['reason']}"
            )

        self._keep(name, recipe, record)
        if record["status"] == "ok":
            self.store.discard(self._partial(name, training, source))
        return record

    def _halvings(self, what: str) -> AbstractContextManager[None]:
        """Warn, once, where memory runs out inside the block."""
        count = min(self.plan.run.chunk, self.plan.examples)
        text = f"{what}: a chunk of {count} images does not fit into memory; halved"
        return halvings(lambda: self.reporter.warn(text))

    def _keep(self, name: str, recipe: dict[str, Any], record: dict[str, Any]) -> None:
        def keep() -> None:
            with self.store.building("evaluations", name, recipe) as work:
                (work / "record.json").write_text(json.dumps(record, indent=1))

        processes.from_first(keep)

    def _is_control(self, training: Training) -> bool:
        return training.key in {t.key for t in self.plan.controls}

    def _finished(self, name: str, training: Training, source: Training | None) -> dict[str, Any] | None:
        """Return the record of an evaluation that is done, of these very weights: a GPU trains none twice the same."""
        found = self.find("evaluations", name)
        if found is None:
            return None
        record: dict[str, Any] = processes.from_first(lambda: json.loads((found / "record.json").read_text()))
        if record.get("status") != "ok":
            return None
        for network, digest in ((training, record["weights_digest"]), (source, record["source_digest"])):
            there = network is not None and self.store.folder("model", network.folder).is_dir()
            if network is not None and there and self.weights_digest(network) != digest:
                return None
        return record

    def _partial(self, name: str, training: Training, source: Training | None) -> str:
        """Return the folder of an unfinished evaluation, another one for other weights."""
        return "-".join([f"partial/{name}", *(self.weights_digest(t)[:8] for t in (training, source) if t)])

    def key(self, training: Training, cell: Cell, protocol: str) -> str:
        """Return the key of a cell's record."""
        return key_of(self._recipe(training, cell, protocol))

    def _recipe(self, training: Training, cell: Cell, protocol: str) -> dict[str, Any]:
        source = self.plan.source if protocol == "transfer" else None
        return {
            "model": training.key,
            "selection": training.selection,
            "source": source.key if source else None,
            "attack": cell.recipe(),
            "protocol": protocol,
            **(self._whole(cell.attack) if protocol == "transfer" else {}),
            "data": self.plan.data_digest,
            "examples": self.plan.examples,
            "chunk": self.plan.run.chunk,
            **({"search": "bf16"} if self._rounds(cell.attack, protocol) else {}),
            **({"precision": "bf16"} if training.defense is External and self.plan.precision == "bf16" else {}),
            **self.plan.environment(),
        }

    def _rounds(self, attack: Attack, protocol: str) -> bool:
        """Say whether images are searched for in bfloat16."""
        if protocol != "white-box" or self.plan.precision != "bf16":
            return False
        return attack.rounds or any(part.rounds for part in attack.parts)

    def _budget(self, attack: Attack, protocol: str) -> str:
        """Say how hard an attack tries, and that it did so in bfloat16: figures of the two are not comparable."""
        return attack.budget + (ROUNDED if self._rounds(attack, protocol) else "")

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
            "config_digest": training.config_digest,
            "defense": training.name,
            "defense_version": training.defense.version,
            "train_norm": training.threat.norm if training.threat else None,
            "train_eps": training.threat.eps if training.threat else None,
            "attack": attack.name,
            "attack_version": attack.version,
            "threat_norm": cell.threat.norm,
            "threat_eps": cell.threat.eps,
            "relative_step": attack.relative_step,
            "steps": attack.steps,
            "gradient_free": attack.gradient_free,
            "stop": "never" if protocol == "transfer" else attack.stop,
            "budget": self._budget(attack, protocol),
            "protocol": protocol,
            "source_digest": self.weights_digest(source) if source and source.key not in self.broken else None,
            "weights_digest": self.weights_digest(training) if there else None,
            "seed": training.seed,
            "selection": training.selection,
            "examples": self.plan.examples,
            "precision": self.plan.precision,
            "compiled": training.compiled,
            "threads": self.plan.threads,
            "hardware": provenance.hardware(self.plan.device, self.plan.devices),
            "torch_version": torch.__version__,
            "commit": provenance.commit(),
            "control": self._is_control(training),
            "status": "failed",
            "reason": "",
            "clean_bits": None,
            "robust_bits": None,
            "seconds": None,
        }

    def clean(self, training: Training) -> Tensor:
        """Return which of the test images a network gets right when clean; measured once."""
        digest = self.weights_digest(training)
        if digest not in self._clean:
            model, plan = self.network(training), self.plan

            def bits(index: Tensor) -> Tensor:
                return evaluation.clean_bits(model, plan.dataset.test, index, plan.device)

            with self._halvings(f"{training.name} on clean images"):
                self._clean[digest] = torch.cat(list(processes.each(self._chunks(), bits)))
        return self._clean[digest]

    def findings(self, training: Training) -> list[dict[str, Any]]:
        """Return what the doctor sees on the first images before any attack; looked at once, by the first process."""
        digest, model, data = self.weights_digest(training), self.network(training), self.plan.dataset.test

        def look() -> list[dict[str, Any]]:
            index = self._chunks()[0][:EXAMINED]
            found = examine(model, data.images(index), data.labels[index].to(self.plan.device))
            return [{"flag": f.check.name, "raised": f.raised, "measured": f.measured} for f in found]

        if digest not in self._findings:
            try:
                self._findings[digest] = processes.from_first(look)
            except Exception as err:  # no memory for a gradient of so many images, for instance
                self._findings[digest] = []
                said = " ".join(str(err).split())
                self.reporter.warn(f"{training.name} was not examined for masked gradients: {said}")
        return self._findings[digest]

    def _twin(self, training: Training, cell: Cell, protocol: str) -> Prepared | None:
        """Compile the network for a search that is long enough to gain by it; None where it is not, or cannot be."""
        model, attack = self.network(training), cell.attack
        if (
            protocol != "white-box"
            or self.plan.device != "cpu"  # where alone a gain was measured
            or not any(part.compiles for part in (attack, *attack.parts))
            or self._rounds(attack, protocol)  # in bfloat16 the graphs would be others
            or (attack.cost or 0) * self.plan.examples < COMPILED
            or sum(p.numel() for p in model.parameters()) > SMALL
            or not provenance.has_compiler()
        ):
            return None
        images = self.plan.dataset.test.images(self._chunks()[0][: 2 * FEW])
        count = next(n for n in range(FEW + 1, 2 * FEW) if n not in images.shape[1:])
        if len(images) < count:
            return None
        if self._compiled is None or self._compiled[0] is not model:
            twin = None
            self.reporter.note(f"compiling {training.name} for its long searches, which can take a minute")
            try:
                with frozen(model):
                    twin = compiled(model, images[:count])
            except Exception as err:  # it gains time only
                self.reporter.warn(f"{training.name} is attacked uncompiled: {' '.join(str(err).split())[:300]}")
            self._compiled = (model, twin)
        return self._compiled[1]

    def _chunks(self) -> list[Tensor]:
        return list(evaluation.chunks(self.plan.examples, self.plan.run.chunk))

    def _bits(
        self, training: Training, cell: Cell, protocol: str, name: str, twin: Prepared | None
    ) -> tuple[Tensor, Tensor, Curves, float]:
        """Attack chunk by chunk; each finished chunk is on disk before the next begins.

        Args:
            name: of the evaluation.
            twin: what searches take their steps on, if not on the network.

        Returns:
            Clean and robust bits, how white-box searches went, and the seconds it took in all.
        """
        plan, data = self.plan, self.plan.dataset.test
        source = plan.source if protocol == "transfer" else None
        states = Unfinished(self.store, self._partial(name, training, source))
        done, went, before = processes.from_first(lambda: evaluated(states))
        begun = time.perf_counter() - before
        clean, chunks = self.clean(training), self._chunks()
        examples = self.examples(cell) if protocol == "transfer" else []
        model = self.network(training)

        def bits(number: int) -> tuple[Tensor, Curves]:
            index, right = chunks[number], clean[chunks[number]]
            if protocol == "white-box":
                with recorded() as kept, in_bfloat16(self._rounds(cell.attack, protocol)), stepping_on(model, twin):
                    found = evaluation.white_box_bits(model, cell.attack, data, index, right, plan.device)
                return found, gather(kept)
            adv = load_file(examples[number] / "examples.safetensors", device=plan.device)["adv"]
            return evaluation.transfer_bits(model, adv, data.labels[index], right), {}

        def save() -> None:
            save_evaluated(states, done, went, time.perf_counter() - begun)

        left = range(len(done), len(chunks))
        with self.reporter.bar(f"{training.name}: {cell.attack.name} {cell.threat} {protocol}", plan.examples) as bar:
            bar(sum(map(len, chunks[: left.start])))
            for number, (found, way) in zip(left, processes.each(left, bits), strict=True):
                done.append(pack(found))
                went = join([went, way])
                processes.from_first(save)
                interrupts.leave_if_asked()
                bar(len(chunks[number]))
        return clean, torch.tensor(Bits.read("".join(done)).values), went, time.perf_counter() - begun

    def _transfer_recipe(self, cell: Cell) -> dict[str, Any]:
        assert self.plan.source is not None
        return {
            "source": self.plan.source.key,
            "attack": cell.recipe(),
            **self._whole(cell.attack),
            "data": self.plan.data_digest,
            **self.plan.environment(),
        }

    @staticmethod
    def _whole(attack: Attack) -> dict[str, str]:
        """What a key says of an ensemble's transfer set: older ones held first successes and clean images."""
        return {"stop": "never"} if attack.parts else {}

    def transfer_key(self, cell: Cell) -> str:
        """Return the key under which a cell's transfer examples, all chunks together, are locked."""
        return key_of(self._transfer_recipe(cell))

    def make_transfer(self, cell: Cell) -> None:
        """Make a cell's transfer examples ahead of the evaluations that need them.

        What fails here fails there again, and is written down there.
        """
        source = self.plan.source
        if source is None or source.key in self.broken:
            return
        needed = [t for t, *item in self.plan.work() if item == [cell, "transfer"]]
        if all(self._finished(self.key(t, cell, "transfer"), t, source) for t in needed):
            return
        try:
            self.examples(cell)
        except StorageError:  # nothing else could be kept either
            raise
        except Exception:
            self.reporter.log(traceback.format_exc())

    def examples(self, cell: Cell) -> list[Path]:
        """Return where the transfer examples of each chunk are: made once on the source, kept as float32."""
        source = self.plan.source
        assert source is not None
        attack, data, device = cell.attack, self.plan.dataset.test, self.plan.device
        common, chunks = self._transfer_recipe(cell), self._chunks()
        common |= {"weights": self.weights_digest(source)}
        recipes = [{**common, "examples": [int(index[0]), int(index[-1])]} for index in chunks]

        def missing() -> list[int]:
            return [n for n, recipe in enumerate(recipes) if self.find("transfer", key_of(recipe)) is None]

        def make(number: int) -> Tensor:
            return evaluation.transfer_examples(self.network(source), attack, data, chunks[number], device).cpu()

        if missing():  # a whole set is read without waiting for its lock
            what = f"{source.name} under {attack.name}"
            with self.store.lock("transfer", self.transfer_key(cell)), self._halvings(what):
                left = missing()
                for number, adv in zip(left, processes.each(left, make), strict=True):
                    processes.from_first(partial(self._keep_examples, recipes[number], adv))
                    interrupts.leave_if_asked()
        return [self.store.folder("transfer", key_of(recipe)) for recipe in recipes]

    def _keep_examples(self, recipe: dict[str, Any], adv: Tensor) -> None:
        with self.store.building("transfer", key_of(recipe), recipe) as work:
            save_tensors({"adv": adv}, work / "examples.safetensors")
