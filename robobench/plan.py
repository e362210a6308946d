"""What has to be done: trainings, attacked cells, and the keys under which their results are kept."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from robobench import models, plugins, provenance
from robobench.api import Attack, Defense, Recipe, Setup, Stage
from robobench.request import RunValues
from robobench.store import key_of
from robobench.threat import ThreatModel

STORE_VERSION = 1  # part of every key; raised when the training loop or the evaluation changes its numbers
NO_THREAT = ThreatModel("Linf", 0.0)  # handed to a defense that trains against nothing


class External(Defense):
    """Stands where a defense stands, for a network that came from elsewhere: no stages."""

    name = "external"
    version = 0
    adversarial = False

    def stages(self, setup: Setup) -> list[Stage]:
        """Train nothing."""
        return []


@dataclass(frozen=True)
class Training:
    """One network to train (or to find in the store)."""

    defense: type[Defense]
    config: Recipe
    seed: int
    spec: models.ModelSpec
    threat: ThreatModel | None  # None where the defense trains against nothing
    requires: dict[str, Training]
    recipe: dict[str, Any]
    dataset: str
    weights: Path | None = None  # of an external network
    selection: str = "last"  # which epoch's weights are attacked: last | best

    @property
    def name(self) -> str:
        """The defense's name; of an external network the stem of its file."""
        return f"{self.defense.name}:{self.recipe['file']}" if self.defense is External else self.defense.name

    @property
    def key(self) -> str:
        """Hash of everything that determines the weights."""
        return key_of(self.recipe)

    @property
    def config_digest(self) -> str:
        """Hash of the setting: the same for every seed."""
        model = {**self.recipe["model"], "seed": None}
        needed = {role: other.config_digest for role, other in self.requires.items()}
        return key_of({**self.recipe, "seed": None, "model": model, "requires": needed})

    @property
    def folder(self) -> str:
        """Name of the folder of the trained model."""
        what = f"{self.name}-{self.spec.name}-{self.dataset}"
        plain = "".join(c if c.isalnum() or c in "-." else "-" for c in what)
        return f"{plain[:80]}-s{self.seed}-{self.key[:10]}"

    @property
    def compiled(self) -> bool:
        """Whether its networks are compiled for training."""
        return bool(self.recipe.get("compiled"))

    def stage_recipe(self, stage: Stage) -> dict[str, Any]:
        """Everything that determines what a stage leaves: of the config only the fields the stage names."""
        config: dict[str, Any] = self.recipe["config"]
        kept = config if stage.fields is None else {name: config[name] for name in stage.fields}
        return {"training": {**self.recipe, "config": kept}, "stage": stage.name}

    def closure(self) -> dict[str, Training]:
        """Every training this one needs, itself last, each once, in an order that can be run."""
        out: dict[str, Training] = {}
        for other in self.requires.values():
            out.update(other.closure())
        out[self.key] = self
        return out


@dataclass(frozen=True)
class Cell:
    """One attack at one radius, to be run under some protocols on every network."""

    attack: Attack
    protocols: tuple[str, ...]

    @property
    def threat(self) -> ThreatModel:
        """The radius and norm of the test."""
        return self.attack.threat

    def recipe(self) -> dict[str, Any]:
        """Everything about the attack that determines what it finds."""
        library = self.attack.library
        return {
            "attack": self.attack.name,
            "version": self.attack.version,
            **({"library": f"{library} {metadata.version(library)}"} if library else {}),
            "code": plugins.digest(type(self.attack)),
            "config": asdict(self.attack.config),
            "norm": self.threat.norm,
            "eps": self.threat.eps,
        }


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything to be done, in order."""

    preset: str
    run: RunValues
    dataset: Any  # data.Dataset
    trainings: list[Training]  # what the table shows, prerequisites not listed; one entry a selection
    controls: list[Training]
    source: Training | None  # the network transfer examples are made on
    cells: list[Cell]
    train_images: int  # how many training images are used, from the first on
    examples: int
    device: str
    precision: str
    threads: int  # of each process
    out: Path
    devices: int = 1  # processes that share every batch and every evaluation, a device each
    checkpoint_every: float = 5.0  # minutes
    fresh: bool = False
    notes: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # what a dry run lacks to become a run

    @property
    def data_digest(self) -> str:
        """Digest of the test images: the same whether or not training images were loaded beside them."""
        return str(self.dataset.test.digest)

    def order(self) -> list[Training]:
        """Every network to be trained, prerequisites first, each once."""
        jobs: dict[str, Training] = {}
        wanted = [*([self.source] if self.source else []), *self.trainings, *self.controls]
        for training in wanted:
            jobs.update(training.closure())
        return list(jobs.values())

    def work(self) -> list[tuple[Training, Cell, str]]:
        """Every (network, attack, protocol) to be evaluated; the source first, while its examples are made.

        A source nobody asked for is shown under transfer only: there the examples are its own, made with the
        full budget, so its white-box cells would cost much and say the same.
        """
        asked = {training.key for training in [*self.trainings, *self.controls]}
        everything = [*([self.source] if self.source else []), *self.trainings, *self.controls]
        wanted = {(t.key, t.selection): t for t in everything}
        return [
            (training, cell, protocol)
            for training in wanted.values()
            for cell in self.cells
            for protocol in cell.protocols
            if training.key in asked or protocol == "transfer"
        ]

    def environment(self) -> dict[str, Any]:
        """What besides the inputs determines the bits of a result."""
        return {
            "device": torch.device(self.device).type,
            "threads": self.threads,
            "torch": torch.__version__,
            "store": STORE_VERSION,
            **provenance.arithmetic(self.device),
        }
