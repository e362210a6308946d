"""Attacks stored models again and compares the results with the records.

A cell is reproduced if the new accuracy lies in the 95 % interval of the recorded one, on the same images. On the same
CPU model, every image has the same outcome, except for compiled attacks, which round differently.
"""

from __future__ import annotations

import random
import shlex
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robobench.attack_engine.base import Attack
from robobench.attack_engine.options import AttackOptions
from robobench.attack_engine.randomized import adapt_model
from robobench.core.device import has_bf16, resolve_device
from robobench.core.memory import keep_freed_memory
from robobench.core.randomness import Randomness
from robobench.core.threat import ThreatModel
from robobench.data import load_dataset
from robobench.data.split import Dataset
from robobench.errors import ArtifactError, RequestError
from robobench.evaluation import accuracy
from robobench.evaluation.source_ensemble import LogitMean
from robobench.execution.load import load_trained
from robobench.planning.parsing import build_config
from robobench.planning.repro_command import RecordWithRecipe, ReproCommands
from robobench.plugins.discovery import parse_attack_spec
from robobench.results.records import EvaluationRecord, source_keys
from robobench.results.rows import read_records
from robobench.results.statistics import PerImageOutcomes, to_bitstring
from robobench.store.artifacts import WEIGHT_FILES, Store

# Fields that are equal in a record and in the record of the retrained cell.
SAME_CELL = (
    *("model", "defense", "train_norm", "train_eps", "seed", "selection", "attack"),
    *("threat_norm", "threat_eps", "protocol", "examples", "data_digest"),
)
# Fields that are equal in transfer cells with the same examples.
SAME_EXAMPLES = ("attack", "attack_budget", "threat_norm", "threat_eps", "protocol", "examples", "source_digest")


@dataclass(frozen=True)
class ReproducedCell:
    """The recorded outcomes of a cell and the new ones, on the same images."""

    record: EvaluationRecord
    clean: tuple[PerImageOutcomes, PerImageOutcomes]  # recorded, now
    robust: tuple[PerImageOutcomes, PerImageOutcomes]

    @property
    def reproduced(self) -> bool:
        """Whether clean and robust accuracy lie in the intervals of the recorded values."""
        return all(was.interval[0] <= now.accuracy <= was.interval[1] for was, now in (self.clean, self.robust))

    def __str__(self) -> str:
        def compare(was: PerImageOutcomes, now: PerImageOutcomes) -> str:
            low, high = (100 * bound for bound in was.interval)
            return f"{100 * now.accuracy:.1f}, recorded {100 * was.accuracy:.1f} [{low:.1f}, {high:.1f}]"

        was, now = self.robust
        count = was.size
        same = count - was.count_lost_in(now) - now.count_lost_in(was)
        return (
            f"{'reproduced' if self.reproduced else 'NOT REPRODUCED'}: {cell_name(self.record)}, "
            f"{count} of {self.record['examples']} images: {compare(was, now)}; "
            f"clean {compare(*self.clean)}; {same} of {count} images as recorded"
        )


def cell_name(record: EvaluationRecord) -> str:
    """Return a cell's name for messages."""
    threat = ThreatModel(record["threat_norm"], record["threat_eps"])
    return f"{record['defense']} (seed {record['seed']}), {record['attack']} {threat}, {record['protocol']}"


def sample_cells(records: list[EvaluationRecord], count: int, seed: int) -> list[EvaluationRecord]:
    """Sample cells of as many different attacks as possible, the fastest first; 0 takes all."""
    cells = random.Random(seed).sample(records, len(records))
    seen: dict[str, int] = {}
    turn = {}
    for cell in cells:
        turn[cell["key"]] = seen[cell["attack"]] = seen.get(cell["attack"], 0) + 1
    chosen = sorted(cells, key=lambda cell: turn[cell["key"]])[: count or None]
    return sorted(chosen, key=lambda cell: float(cell["seconds"] or 0.0))


class Reproducer:
    """Attacks recorded cells of a store or a leaderboard folder again.

    Args:
        sample: number of cells; 0: all.
        minutes: time limit for all cells. If a cell would exceed its share, only its first images are attacked.
        factory: FILE.py:FUNCTION for models that a user's function builds.
        retrain: store in which the models are trained again first; None attacks the stored weights.
        keep: returns the records to draw from; it may raise RequestError. Default: all.
        warn: gets a message the first time that a batch does not fit into memory.

    Raises:
        RequestError: there are no records, or no weights.
        ArtifactError: a file does not match its digest.
    """

    def __init__(
        self,
        place: Path,
        *,
        sample: int = 3,
        seed: int = 0,
        minutes: float = 8.0,
        data_dir: Path | None = None,
        device: str = "auto",
        retrain: Path | None = None,
        keep: Callable[[list[EvaluationRecord]], list[EvaluationRecord]] = lambda records: records,
        factory: str | None = None,
        warn: Callable[[str], None] = warnings.warn,
    ) -> None:
        if sample < 0 or minutes <= 0:
            raise RequestError(f"--sample must be 0 (all) or more and --minutes above 0, got {sample} and {minutes:g}")
        records = [r for r in read_records(place) if r["status"] == "ok"]
        if not records:
            raise RequestError(f"no records in '{place}'; name a store, or a folder of leaderboards/ of a git clone")
        records = keep(records)
        self.place, self.data_dir, self.device, self.retrain = place, data_dir, resolve_device(device), retrain
        self.factory = factory
        self.commands = ReproCommands(place)
        self.recipes = {r["key"]: r["recipe"] for group in self.commands.records.values() for r in group}
        available = [r for r in records if retrain or self._has_weights(r)]
        if not available:
            raise RequestError(f"the weights are not in '{place}'; train them again with --retrain STORE")
        self.cells = sample_cells(available, sample, seed)
        self.left_out = len(records) - len(available)
        self.minutes = minutes
        self.seconds = {r["key"]: _recorded_seconds(r, records) for r in self.cells}
        self._data: dict[tuple[str, int], Dataset] = {}
        self._warn: Callable[[str], None] | None = warn  # None after the first warning
        keep_freed_memory()

    def __iter__(self) -> Iterator[ReproducedCell]:
        end = time.monotonic() + 60 * self.minutes
        for number, record in enumerate(self.cells):
            share = max(0.0, end - time.monotonic()) / (len(self.cells) - number)
            yield self._attack_again(record, share) if self.retrain is None else self._train_again(record, self.retrain)

    def _sources(self, record: EvaluationRecord) -> dict[str, str | None]:
        """Return the folders of a cell's transfer sources, '' if not stored, with the digests of their weights."""
        if "sources" in record:
            return {source["training"]: source["weights_digest"] for source in record["sources"]}
        keys, configs = source_keys(self.recipes[record["key"]]), self.commands.configs
        return {next((f for f, c in configs.items() if c["key"] == key), ""): record["source_digest"] for key in keys}

    def _has_weights(self, record: EvaluationRecord) -> bool:
        """Return whether the weights a cell needs are stored. The replacement model of BPDA may need a user's code."""
        if "bpda" in record:
            return False
        needed = [(record["training"], record["selection"])]
        needed += [(source, "last") for source in self._sources(record)]
        return all(f and (self.place / f / WEIGHT_FILES[selection]).is_file() for f, selection in needed)

    def _attack_again(self, record: EvaluationRecord, share: float) -> ReproducedCell:
        """Attack a stored model with the settings of its record, within `share` seconds."""
        recipe, split = self.recipes[record["key"]], self._images(record).test
        torch.set_num_threads(record["threads"])
        attack = _attack_of(recipe["attack"])
        model = self._load(record["training"], record["selection"], record["weights_digest"])
        model = adapt_model(model, None, Randomness.parse(record.get("eot"), record.get("verdict")))
        folders = self._sources(record)
        sources = [self._load(folder, "last", digest) for folder, digest in folders.items()]
        source = LogitMean(sources, list(folders)) if len(sources) > 1 else next(iter(sources), None)
        count = min(record["examples"], max(1, int(share / self.seconds[record["key"]] * record["examples"])))
        bf16, split_warning = recipe.get("search") == "bf16" and has_bf16(self.device), self._on_oom_split
        options = AttackOptions(bf16_search=bf16, on_oom_split=split_warning)
        clean_bits, robust_bits = [], []
        for index in accuracy.batch_indices(count, recipe["eval_batch_size"]):
            clean = accuracy.clean_outcomes(model, split, index, self.device, split_warning)
            if source is None:
                robust = accuracy.white_box_outcomes(model, attack, split, index, clean, self.device, options)
            else:
                options = AttackOptions(on_oom_split=split_warning)
                adv = accuracy.transfer_examples(source, attack, split, index, self.device, options)
                robust = accuracy.transfer_outcomes(model, adv, split.labels[index], clean, split_warning)
            clean_bits.append(to_bitstring(clean))
            robust_bits.append(to_bitstring(robust))
        return _compare(record, "".join(clean_bits), "".join(robust_bits))

    def _on_oom_split(self, text: str) -> None:
        if self._warn is not None:
            self._warn(text)
            self._warn = None

    def _images(self, record: EvaluationRecord) -> Dataset:
        """Load the data set of a record; raises RequestError if the test images differ."""
        resolution = self.commands.configs[record["training"]]["resolution"]
        at = (record["dataset"], resolution)
        if at not in self._data:
            self._data[at] = load_dataset(
                record["dataset"], data_dir=self.data_dir, resolution=resolution, need_train=False, device=self.device
            )
        digest = self._data[at].test.digest
        if digest != record["data_digest"]:
            raise RequestError(
                f"the test images of '{record['dataset']}' have digest {digest}, those of the record "
                f"{record['data_digest']}; name the folder of the same files with --data-dir (see its README.md)"
            )
        return self._data[at]

    def _load(self, folder: str, selection: str, digest: str | None) -> nn.Module:
        """Load stored weights; raises ArtifactError if they are not those of the record."""
        file = WEIGHT_FILES[selection]
        if not Store(self.place).digest("model", folder, file).startswith(digest or "none"):
            raise ArtifactError(f"'{self.place / folder / file}' is not the model that was attacked")
        return load_trained(self.place, folder, self.factory, selection)[0].to(self.device)

    def _train_again(self, record: EvaluationRecord, out: Path) -> ReproducedCell:
        """Train and attack the model of a cell again with the command of its row."""
        self._images(record)  # fail before hours of training if the images differ
        folder = record["training"]
        cell: RecordWithRecipe = {**record, "recipe": self.recipes[record["key"]]}
        words = self.commands.arguments(folder, [cell], examples=record["examples"])
        unknown = [word for word in words if word == "FILE" or word.endswith("WEIGHTS")]
        if unknown:
            raise RequestError(f"'{folder}' cannot be trained again: {unknown[0]} is not recorded; leave --retrain out")
        words += ["--out", str(out), "--device", self.device]
        words += ["--data-dir", str(self.data_dir)] if self.data_dir else []
        done = subprocess.run([sys.executable, "-m", "robobench", *words], stdout=subprocess.DEVNULL)
        found = self._same_cells(record, out) if out.is_dir() else []
        if done.returncode or not found:
            raise RequestError(f"training '{folder}' again failed; its command: {shlex.join(['robobench', *words])}")
        return _compare(record, found[-1]["clean_bits"] or "", found[-1]["robust_bits"] or "")

    def _same_cells(self, record: EvaluationRecord, out: Path) -> list[EvaluationRecord]:
        """Return the finished records of another store for the same cell and settings."""
        again, wanted = ReproCommands(out), self.recipes[record["key"]]["attack"]["config"]
        recipes = {r["key"]: r["recipe"] for group in again.records.values() for r in group}
        expected: dict[str, Any] = dict(record)
        found = []
        for other in read_records(out):
            values: dict[str, Any] = dict(other)
            same = all(values[name] == expected[name] for name in SAME_CELL) and other["status"] == "ok"
            if not same or recipes[other["key"]]["attack"]["config"] != wanted:
                continue
            configs = again.configs[other["training"]], self.commands.configs[record["training"]]
            if configs[0]["config"] == configs[1]["config"]:
                found.append(other)
        return found


def _recorded_seconds(record: EvaluationRecord, records: list[EvaluationRecord]) -> float:
    """Return a cell's recorded seconds. Of transfer cells with the same examples, the first one computed them."""
    group = [record]
    if record["protocol"] == "transfer":
        expected: dict[str, Any] = dict(record)
        group = [r for r in records if all(dict(r)[name] == expected[name] for name in SAME_EXAMPLES)]
    return max(float(r["seconds"] or 0.0) for r in group)


def _attack_of(recipe: dict[str, Any]) -> Attack:
    """Build an attack from its recipe."""
    cls, _ = parse_attack_spec(recipe["attack"])
    given = {f.name for f in fields(cls.Config) if f.init}
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in recipe["config"].items() if k in given}
    attack: Attack = cls(build_config(cls.Config, values, recipe["attack"]), ThreatModel(recipe["norm"], recipe["eps"]))
    return attack


def _compare(record: EvaluationRecord, clean: str, robust: str) -> ReproducedCell:
    parse, count = PerImageOutcomes.parse, len(clean)
    return ReproducedCell(
        record,
        (parse((record["clean_bits"] or "")[:count]), parse(clean)),
        (parse((record["robust_bits"] or "")[:count]), parse(robust)),
    )
