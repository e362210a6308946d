"""The plan of a run: models to train, attacks to run on them, and the keys under which results are stored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch

from robobench.attack_engine.base import Attack
from robobench.core.device import tf32_setting
from robobench.core.randomness import Randomness
from robobench.core.threat import ThreatModel
from robobench.data.split import Dataset
from robobench.models.spec import ModelSpec
from robobench.planning.initial_weights import InitialWeights
from robobench.planning.request import RunConfig
from robobench.plugins.digest import code_digest
from robobench.results.records import Protocol
from robobench.store.artifacts import hash_recipe
from robobench.training.base import Defense, Stage
from robobench.training.config import TrainConfig

STORE_VERSION = 1  # part of every key; raise it when the training loop or the evaluation changes its numbers
NO_THREAT = ThreatModel("Linf", 0.0)  # given to a defense without adversarial training


@dataclass(frozen=True)
class DatasetIdentity:
    """Which data a plan is for. The images themselves are not part of a plan."""

    name: str
    digest: str  # of the loaded splits
    test_digest: str  # of the test images alone, the same whether or not training images were loaded
    num_classes: int
    resolution: int  # side of the images, px
    train_size: int
    test_size: int

    @classmethod
    def of(cls, dataset: Dataset) -> DatasetIdentity:
        """Return the identity of a loaded data set."""
        return cls(
            name=dataset.name,
            digest=dataset.digest,
            test_digest=dataset.test.digest,
            num_classes=dataset.num_classes,
            resolution=dataset.resolution,
            train_size=len(dataset.train) if dataset.train is not None else 0,
            test_size=len(dataset.test),
        )


@dataclass(frozen=True, kw_only=True)
class PlannedModel(ABC):
    """A model that a plan evaluates: trained here (`TrainingJob`) or elsewhere (`ExternalModel`)."""

    spec: ModelSpec
    recipe: dict[str, Any]  # everything that determines the weights
    dataset: str
    seed: int = 0
    requires: dict[str, PlannedModel] = field(default_factory=dict)  # role -> model that must exist first
    selection: str = "last"  # which weights are attacked: a key of WEIGHT_FILES
    threat: ThreatModel | None = None  # trained against; None without adversarial training

    @property
    @abstractmethod
    def name(self) -> str:
        """Name in tables."""

    @property
    def version(self) -> int:
        """Version of the defense; 0 for an external model."""
        return 0

    @cached_property
    def key(self) -> str:
        """Hash of everything that determines the weights."""
        return hash_recipe(self.recipe)

    @property
    def identity(self) -> tuple[str, str]:
        """Key and selection: one training stores the weights of several selections."""
        return self.key, self.selection

    @cached_property
    def config_digest(self) -> str:
        """Hash of the settings, the same for every seed."""
        model = {**self.recipe["model"], "seed": None}
        required = {role: other.config_digest for role, other in self.requires.items()}
        return hash_recipe({**self.recipe, "seed": None, "model": model, "requires": required})

    @property
    def folder(self) -> str:
        """Name of the model's folder in the store."""
        what = f"{self.name}-{self.spec.name}-{self.dataset}"
        plain = "".join(c if c.isalnum() or c in "-." else "-" for c in what)
        return f"{plain[:80]}-s{self.seed}-{self.key[:10]}"

    @property
    def compiled(self) -> bool:
        """Whether its networks are compiled for training."""
        return bool(self.recipe.get("compiled"))

    def with_dependencies(self) -> dict[str, PlannedModel]:
        """Return every model this one needs and itself, by key, each after those it needs."""
        out: dict[str, PlannedModel] = {}
        for other in self.requires.values():
            out.update(other.with_dependencies())
        out[self.key] = self
        return out


@dataclass(frozen=True, kw_only=True)
class TrainingJob(PlannedModel):
    """A model to train, or to find in the store."""

    defense: type[Defense]
    config: TrainConfig

    @property
    def name(self) -> str:
        """The defense's name."""
        return self.defense.name

    @property
    def version(self) -> int:
        """The defense's version."""
        return self.defense.version

    def stage_recipe(self, stage: Stage) -> dict[str, Any]:
        """Return everything that determines a stage's result. Of the config, only fields the stage depends on."""
        config: dict[str, Any] = self.recipe["config"]
        if stage.config_fields is not None:
            names = (*stage.config_fields, "freeze")  # which parameters train is decided before the first stage
            config = {name: config[name] for name in names if name in config}
        return {"training": {**self.recipe, "config": config}, "stage": stage.name}


@dataclass(frozen=True, kw_only=True)
class ExternalModel(PlannedModel):
    """A model that was trained elsewhere."""

    weights: Path | None = None  # None: its factory loads them
    weights_key: str | None = None  # which of several models in the file

    @property
    def name(self) -> str:
        """external: and the stem of its file."""
        return f"external:{self.recipe['file']}"


@dataclass(frozen=True)
class AttackSpec:
    """One attack at one radius, and the protocols under which it is run on every model."""

    attack: Attack
    protocols: tuple[Protocol, ...]

    @property
    def threat(self) -> ThreatModel:
        """Norm and radius of the attack."""
        return self.attack.threat

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """Everything about the attack that determines its result."""
        library = self.attack.library
        return {
            "attack": self.attack.name,
            "version": self.attack.version,
            **({"library": f"{library} {metadata.version(library)}"} if library else {}),
            "code": code_digest(type(self.attack)),
            "config": {name: value for name, value in asdict(self.attack.config).items() if value != ""},
            "norm": self.threat.norm,
            "eps": self.threat.eps,
        }


class Cell(NamedTuple):
    """One entry of the result tables: a model under an attack and a protocol."""

    model: PlannedModel
    spec: AttackSpec
    protocol: Protocol


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything a run does."""

    preset: str
    run: RunConfig
    dataset: DatasetIdentity
    models: list[PlannedModel]  # shown in the table, prerequisites not listed; one entry per selected epoch
    controls: list[PlannedModel]  # undefended baselines of another seed
    transfer_sources: tuple[PlannedModel, ...]  # several: examples are made on the mean of their logits
    attacks: list[AttackSpec]
    train_images: int  # number of training images used, from the first on
    examples: int  # number of test images used
    device: str
    precision: str
    threads: int  # per process
    out: Path
    until: float | None = None  # percentage points; attacked in random order until the accuracy is known within these
    devices: int = 1  # processes that share every batch and every evaluation, one device each
    checkpoint_minutes: float = 5.0
    overwrite: bool = False
    track: tuple[str, ...] = ()  # names of trackers
    notes: list[str] = field(default_factory=list)
    unavailable_data: list[str] = field(default_factory=list)  # what a dry run lacks to become a run
    init: InitialWeights | None = None  # weights that trainings start from
    randomness: Randomness | None = None  # of models with random outputs; None: one pass is enough
    bpda: PlannedModel | None = None  # gives the gradients of white-box attacks; verdicts are the model's own
    save_adversarial: Path | None = None  # file for one adversarial image per test image

    @property
    def eot(self) -> int:
        """Passes that an attack takes in place of each one."""
        return self.randomness.eot if self.randomness else 1

    def training_order(self) -> list[PlannedModel]:
        """Return every model that is needed, each once and after those it requires."""
        jobs: dict[str, PlannedModel] = {}
        helpers = [self.bpda] if self.bpda is not None else []
        for model in [*self.transfer_sources, *helpers, *self.models, *self.controls]:
            jobs.update(model.with_dependencies())
        return list(jobs.values())

    def cells(self) -> list[Cell]:
        """Return every cell to be evaluated, those of the transfer source first.

        A transfer source that was not asked for is evaluated under transfer only: there the examples are its own. Those
        of several sources are partly each one's own, so none of these is evaluated under transfer.
        """
        asked = {model.key for model in [*self.models, *self.controls]}
        several = self.transfer_sources if len(self.transfer_sources) > 1 else ()
        excluded = {source.key for source in several}
        everything = [*([] if several else self.transfer_sources), *self.models, *self.controls]
        wanted = {m.identity: m for m in everything}
        return [
            Cell(model, spec, protocol)
            for model in wanted.values()
            for spec in self.attacks
            for protocol in spec.protocols
            if (model.key not in excluded if protocol == "transfer" else model.key in asked)
        ]

    def attacked(self, cell: Cell) -> tuple[PlannedModel, ...]:
        """Return the models that a cell's examples are made on."""
        return self.transfer_sources if cell.protocol == "transfer" else (cell.model,)

    @property
    def transfer_key(self) -> str | list[str]:
        """Key of the transfer source; of several, the list of their keys."""
        keys = [source.key for source in self.transfer_sources]
        return keys[0] if len(keys) == 1 else keys

    def is_control(self, model: PlannedModel) -> bool:
        """Return whether a model is an undefended baseline of another seed."""
        return model.key in {control.key for control in self.controls}

    def environment(self) -> dict[str, Any]:
        """Return what determines a result besides its inputs."""
        return {
            "device": torch.device(self.device).type,
            "threads": self.threads,
            "torch": torch.__version__,
            "store": STORE_VERSION,
            **tf32_setting(self.device),
        }
