"""Attacks stored networks again and compares what is found with what was recorded.

A figure holds if the accuracy found now lies in the 95 % interval of the recorded one, on the same images. On the CPU
it was measured on it is the same image by image, unless the search ran compiled, which rounds differently.
"""

from __future__ import annotations

import random
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robobench import data, evaluation, interface, plugins, results
from robobench.allocator import keep_freed_memory
from robobench.api import Attack
from robobench.errors import ArtifactError, RequestError
from robobench.provenance import has_bf16, resolve_device
from robobench.redo import Redo
from robobench.report.folder import matrix_csv
from robobench.request import make
from robobench.standin import in_bfloat16
from robobench.statistics import Bits, pack
from robobench.store import WEIGHT_FILES, Store
from robobench.threat import ThreatModel

Record = dict[str, Any]


@dataclass(frozen=True)
class Found:
    """A recorded cell beside the same cell attacked again, over the same images."""

    record: Record
    clean: tuple[Bits, Bits]  # recorded, now
    robust: tuple[Bits, Bits]

    @property
    def holds(self) -> bool:
        """Whether both accuracies lie in the intervals of those recorded."""
        return all(was.interval[0] <= now.accuracy <= was.interval[1] for was, now in (self.clean, self.robust))

    def __str__(self) -> str:
        def told(was: Bits, now: Bits) -> str:
            low, high = (100 * bound for bound in was.interval)
            return f"{100 * now.accuracy:.1f}, recorded {100 * was.accuracy:.1f} [{low:.1f}, {high:.1f}]"

        was, now = self.robust
        count = len(was.values)
        same = count - was.without(now) - now.without(was)
        return (
            f"{'holds' if self.holds else 'FAILS'}: {name(self.record)}, {count} of {self.record['examples']} images: "
            f"{told(was, now)}; "
            f"clean {told(*self.clean)}; {same} of {count} images as recorded"
        )


def name(record: Record) -> str:
    """Name a cell for people."""
    threat = ThreatModel(record["threat_norm"], record["threat_eps"])
    return f"{record['defense']} (seed {record['seed']}), {record['attack']} {threat}, {record['protocol']}"


def tables(place: Path) -> list[str]:
    """Return the tables in a folder that are not what its records give."""
    rows = results.frame(results.records(place))
    older = rows.drop(columns=results.LATER)
    made = {"rows.csv": [r.to_csv(index=False) for r in (rows, older)], "matrix.csv": [matrix_csv(rows)]}
    return [file for file, able in made.items() if (place / file).is_file() and (place / file).read_text() not in able]


def draw(records: list[Record], count: int, seed: int) -> list[Record]:
    """Draw cells at random, of as many different attacks as can be, those that took least first; 0: all there are."""
    cells = random.Random(seed).sample(records, len(records))
    met: dict[str, int] = {}
    turn = {}
    for cell in cells:
        turn[cell["key"]] = met[cell["attack"]] = met.get(cell["attack"], 0) + 1
    chosen = sorted(cells, key=lambda cell: turn[cell["key"]])[: count or None]
    return sorted(chosen, key=lambda cell: float(cell["seconds"]))


class Verifier:
    """Attacks cells of one store or board again.

    Args:
        minutes: what all cells may take together; one that took longer than its share of what is left, when it was
            made, is attacked on its first images only.
        retrain: a store in which the networks are trained again first; None: the stored weights are attacked.

    Raises:
        RequestError: nothing is recorded there, or no weights are.
        ArtifactError: a file is not what was written.
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
    ) -> None:
        if sample < 0 or minutes <= 0:
            raise RequestError(f"--sample must be 0 (all) or more and --minutes above 0, got {sample} and {minutes:g}")
        records = [r for r in results.records(place) if r["status"] == "ok"]
        if not records:
            raise RequestError(f"no records in '{place}'; name a store, or a folder of leaderboards/ of a git clone")
        self.place, self.data_dir, self.device, self.retrain = place, data_dir, resolve_device(device), retrain
        self.redo = Redo(place)
        self.recipes = {r["key"]: r["recipe"] for group in self.redo.cells.values() for r in group}
        able = [r for r in records if retrain or self._at_hand(r)]
        if not able:
            raise RequestError(f"the weights are not in '{place}'; train them again with --retrain STORE")
        self.cells = draw(able, sample, seed)
        self.left_out = len(records) - len(able)
        self.minutes = minutes
        self.seconds = {r["key"]: self._seconds(r, records) for r in self.cells}
        self._data: dict[tuple[str, int], data.Dataset] = {}
        keep_freed_memory()

    def _source(self, record: Record) -> str | None:
        """Folder of the network a transfer cell's examples are made on; '' where it is not here."""
        key = self.recipes[record["key"]]["source"]
        return None if key is None else next((f for f, c in self.redo.configs.items() if c["key"] == key), "")

    def _at_hand(self, record: Record) -> bool:
        """Say whether the weights a cell needs are here."""
        needed = [(record["training"], record["selection"])]
        source = self._source(record)
        needed += [(source, "last")] if source is not None else []
        return all(f and (self.place / f / WEIGHT_FILES[selection]).is_file() for f, selection in needed)

    @staticmethod
    def _seconds(record: Record, records: list[Record]) -> float:
        """What a cell takes by its record; of transfer cells the first one paid for the examples of all."""
        same = ("attack", "budget", "threat_norm", "threat_eps", "protocol", "examples", "source_digest")
        alike = [r for r in records if all(r[k] == record[k] for k in same)]
        return float(max(r["seconds"] for r in (alike if record["protocol"] == "transfer" else [record])))

    def __iter__(self) -> Iterator[Found]:
        end = time.monotonic() + 60 * self.minutes
        for number, record in enumerate(self.cells):
            share = max(0.0, end - time.monotonic()) / (len(self.cells) - number)
            yield self._again(record, share) if self.retrain is None else self._trained_again(record, self.retrain)

    def _again(self, record: Record, share: float) -> Found:
        """Attack a stored network as its record says, chunk by chunk."""
        recipe, split = self.recipes[record["key"]], self._images(record).test
        torch.set_num_threads(record["threads"])
        attack = self._attack(recipe["attack"])
        model = self._network(record["training"], record["selection"], record["weights_digest"])
        source = self._source(record)
        maker = self._network(source, "last", record["source_digest"]) if source else None
        count = min(record["examples"], max(1, int(share / self.seconds[record["key"]] * record["examples"])))
        clean, robust = [], []
        for index in evaluation.chunks(count, recipe["chunk"]):
            right = evaluation.clean_bits(model, split, index, self.device)
            if maker is None:
                with in_bfloat16(recipe.get("search") == "bf16" and has_bf16(self.device)):
                    bits = evaluation.white_box_bits(model, attack, split, index, right, self.device)
            else:
                adv = evaluation.transfer_examples(maker, attack, split, index, self.device)
                bits = evaluation.transfer_bits(model, adv, split.labels[index], right)
            clean.append(pack(right))
            robust.append(pack(bits))
        return self._found(record, "".join(clean), "".join(robust))

    @staticmethod
    def _found(record: Record, clean: str, robust: str) -> Found:
        count = len(clean)
        read = Bits.read
        return Found(
            record,
            (read(record["clean_bits"][:count]), read(clean)),
            (read(record["robust_bits"][:count]), read(robust)),
        )

    def _images(self, record: Record) -> data.Dataset:
        """Load the data set of a record; raises RequestError where the test images are others."""
        resolution = self.redo.configs[record["training"]]["resolution"]
        at = (record["dataset"], resolution)
        if at not in self._data:
            self._data[at] = data.load(
                record["dataset"], data_dir=self.data_dir, resolution=resolution, need_train=False, device=self.device
            )
        digest = self._data[at].test.digest
        if digest != record["data_digest"]:
            raise RequestError(
                f"these are not the images of the record: '{record['dataset']}' has digest {digest} here and "
                f"{record['data_digest']} there; name the folder of the same files with --data-dir (see its README.md)"
            )
        return self._data[at]

    @staticmethod
    def _attack(recipe: dict[str, Any]) -> Attack:
        cls, _ = plugins.attack_and_values(recipe["attack"])
        given = {f.name for f in fields(cls.Config) if f.init}
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in recipe["config"].items() if k in given}
        return cls(make(cls.Config, values, recipe["attack"]), ThreatModel(recipe["norm"], recipe["eps"]))

    def _network(self, folder: str, selection: str, digest: str) -> nn.Module:
        """Load stored weights, which must be those of the record."""
        file = WEIGHT_FILES[selection]
        if not Store(self.place).digest("model", folder, file).startswith(digest):
            raise ArtifactError(f"'{self.place / folder / file}' is not the network that was attacked")
        return interface.stored(self.place, folder, selection=selection)[0].to(self.device)

    def _trained_again(self, record: Record, out: Path) -> Found:
        """Run the command that makes a cell from nothing, and read what it found."""
        self._images(record)  # refused before hours of training where they are others
        folder = record["training"]
        cell = {**record, "recipe": self.recipes[record["key"]]}
        words = self.redo.words(folder, [cell], examples=record["examples"])
        unknown = [word for word in words if word == "FILE" or word.endswith("WEIGHTS")]
        if unknown:
            raise RequestError(
                f"'{folder}' needs what is not recorded ({unknown[0]}); attack its stored weights: leave --retrain out"
            )
        words += ["--out", str(out), "--device", self.device]
        words += ["--data-dir", str(self.data_dir)] if self.data_dir else []
        done = subprocess.run([sys.executable, "-m", "robobench", *words], stdout=subprocess.DEVNULL)
        same = [
            *("model", "defense", "train_norm", "train_eps", "seed", "selection", "attack"),
            *("threat_norm", "threat_eps", "protocol", "examples", "data_digest"),
        ]
        made = [r for r in results.records(out) if all(r[k] == record[k] for k in same)] if out.is_dir() else []
        again, attacked = Redo(out), cell["recipe"]["attack"]["config"]
        recipes = {r["key"]: r["recipe"] for group in again.cells.values() for r in group}
        made = [r for r in made if r["status"] == "ok" and recipes[r["key"]]["attack"]["config"] == attacked]
        made = [r for r in made if again.configs[r["training"]]["config"] == self.redo.configs[folder]["config"]]
        if done.returncode or not made:
            raise RequestError(f"training '{folder}' again failed; its command: {shlex.join(['robobench', *words])}")
        return self._found(record, made[-1]["clean_bits"], made[-1]["robust_bits"])
