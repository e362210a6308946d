"""Models of a run: trainings with what they require, teachers from files, and external models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from robobench.core.device import should_compile, tf32_setting
from robobench.data.split import Dataset
from robobench.errors import RequestError
from robobench.models.build import build_model
from robobench.models.checks import check_features_and_head, missing_attributes, try_model
from robobench.models.pretrained import check_pretrained, with_published_preprocessing
from robobench.models.spec import MODELS, ModelSpec, brings_own_normalization
from robobench.planning.attacks import train_threat
from robobench.planning.external import ExternalRequest, plan_external_model
from robobench.planning.initial_weights import find_initial_weights
from robobench.planning.plan import STORE_VERSION, ExternalModel, PlannedModel, TrainingJob
from robobench.planning.settings import Settings
from robobench.planning.stored_models import local_weights
from robobench.planning.teacher_files import Teacher, Teachers
from robobench.plugins.digest import code_digest
from robobench.plugins.discovery import load_defense
from robobench.store.artifacts import Store
from robobench.store.hub import is_hub_name
from robobench.training.base import Defense
from robobench.training.config import TrainConfig, recorded_values


class ModelPlanner:
    """Plans the models of one run; each training is planned once."""

    def __init__(self, settings: Settings, dataset: Dataset, train_images: int) -> None:
        self.settings, self.dataset, self.train_images = settings, dataset, train_images
        self.teachers = Teachers(settings.request.teachers)
        self.threat = train_threat(settings)
        self.init = find_initial_weights(settings.request) if settings.request.defenses else None
        self._planned: dict[tuple[str, int], TrainingJob] = {}
        self._methods: dict[str, tuple[type[Defense], TrainConfig, dict[str, Any]]] = {}
        self._user_model: Any = None  # a model that is not ours, built to inspect it
        self._has_batchnorm: bool | None = None  # None: not looked up yet

    def spec(self, seed: int, name: str | None = None) -> ModelSpec:
        """Return the run's model, or another one by name, initialized from a seed."""
        run, name = self.settings.run, name or self.settings.request.model
        mean, std = self.settings.info.mean, self.settings.info.std
        if brings_own_normalization(name):
            mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        spec = ModelSpec(
            name=name,
            num_classes=self.dataset.num_classes,
            image_size=run.image_size,
            stem=run.stem,
            interpolation=run.interpolation,
            mean=mean,
            std=std,
            pretrained=run.pretrained,
            seed=seed,
        )
        if not run.pretrained or brings_own_normalization(name):
            return spec
        keep_size, resolution = "image_size" in self.settings.given, run.attack_resolution
        found = with_published_preprocessing(spec, keep_size=keep_size, resolution=resolution)
        return replace(found, interpolation=run.interpolation) if "interpolation" in self.settings.given else found

    def training(self, name: str, seed: int, below: tuple[str, ...] = ()) -> TrainingJob:
        """Return the training of a defense, with all it requires.

        Args:
            below: defenses that require this one.

        Raises:
            RequestError: a defense requires itself, or the model lacks something it needs.
        """
        if name in below:
            raise RequestError(f"defense '{name}' requires itself through {' -> '.join((*below, name))}")
        if (name, seed) in self._planned:
            return self._planned[name, seed]
        if name not in self._methods:
            self._methods[name] = self._method(name)
        cls, config, shared = self._methods[name]
        requires: dict[str, PlannedModel] = {
            role: self._teacher(role, name) if role in self.teachers else self.training(other, seed, (*below, name))
            for role, other in cls(config).requires.items()
        }
        spec, keys = self._own_spec(seed), {role: other.key for role, other in requires.items()}
        self._planned[name, seed] = TrainingJob(
            defense=cls,
            config=config,
            seed=seed,
            spec=spec,
            threat=self.threat if cls.adversarial else None,
            requires=requires,
            recipe={**shared, "model": spec.recipe(), "seed": seed, "requires": keys},
            dataset=self.settings.request.dataset,
        )
        return self._planned[name, seed]

    def _own_spec(self, seed: int) -> ModelSpec:
        """Return the model that defenses train, with what --init changes of it."""
        return self.spec(seed) if self.init is None else self.init.adapt(self.spec(seed))

    def _method(self, name: str) -> tuple[type[Defense], TrainConfig, dict[str, Any]]:
        """Return a defense, its config, and the part of the recipe that its trainings of all seeds share.

        Raises:
            RequestError: a setting is wrong, or the model lacks something that the defense needs.
        """
        settings = self.settings
        cls = load_defense(name)
        config = settings.plugin_config(cls, name, {})
        if not settings.info.flips and "flip" in config.augment:
            settings.note(
                f"{name}.augment={config.augment} mirrors images of '{settings.request.dataset}', some of which then "
                "show another class; crop and none do not"
            )
        spec = self._own_spec(0)
        check_pretrained(spec)
        if self.init is not None:
            self.init.check(spec)
        missing = self._missing_attributes(spec, cls.model_attributes)
        if missing:
            raise RequestError(
                f"defense '{name}' needs {' and '.join(missing)} of the model, and '{spec.name}' has none; "
                "add them (features(images) -> (B, D), and the last nn.Linear as head) or choose another model"
            )
        return cls, config, self._shared_recipe(cls, config, spec)

    def _shared_recipe(self, cls: type[Defense], config: TrainConfig, spec: ModelSpec) -> dict[str, Any]:
        """Return what the weights of a training depend on beside model, seed and required models.

        The key of a training is the hash of all.
        """
        settings, extra = self.settings, self.dataset.extra
        images_seen = config.epochs * self.train_images
        compiled = should_compile(settings.request.compile, settings.device, images_seen)
        return {
            "defense": cls.name,
            "version": cls.version,
            "code": code_digest(cls),
            "config": recorded_values(config),
            "data": self.dataset.digest,
            "train_images": self.train_images,
            "held_out": settings.run.held_out,
            "resolution": settings.run.attack_resolution,
            "threat": self.threat.recipe() if cls.adversarial else None,
            "precision": settings.precision,
            "device": torch.device(settings.device).type,
            "threads": settings.threads,
            "torch": torch.__version__,
            "store": STORE_VERSION,
            **tf32_setting(settings.device),
            **({"compiled": True} if compiled and not cls.second_derivatives else {}),
            **self._device_count_key(spec),
            **({"init": self.init.recipe()} if self.init else {}),
            **({"extra": extra.digest, "extra_fraction": settings.run.extra_fraction} if extra else {}),
        }

    def external(
        self, name: str, weights: Path | None, spec: ModelSpec | None = None, *, role: str = "evaluated"
    ) -> ExternalModel:
        """Return a model that was trained elsewhere; see `plan_external_model`.

        Args:
            spec: default: that of the run's model.
            role: "evaluated" renumbers the classes of `dataset` if the model has more; "source" and "teacher" ignore
                --mean, --std and --weights-key, a teacher must have the data's classes; "bpda" uses --mean and --std.
        """
        request, settings = self.settings.request, self.settings
        own = role == "evaluated"
        asked = ExternalRequest(
            spec=replace(spec or self.spec(0, name), name=name),
            weights=weights,
            weights_key=request.weights_key if own else None,
            mean=request.mean if own or role == "bpda" else None,
            std=request.std if own or role == "bpda" else None,
            keep_size="image_size" in settings.given,
            outputs=self.dataset.num_classes if role == "teacher" else None,
            name=request.name if own else None,
        )
        model, dataset = plan_external_model(asked, self.dataset, device=settings.device, note=settings.note)
        if own:
            self.dataset = dataset
        return model

    def source(self, text: str) -> ExternalModel:
        """Return the model of one --transfer-source: MODEL, MODEL=WEIGHTS or hf:OWNER/REPO."""
        if is_hub_name(text):
            given = Teacher.read(text)
            name = given.spec.name if given.spec else self.settings.request.model
            return self.external(name, given.weights, given.spec, role="source")
        name, _, file = text.partition("=")
        return self.external(name, local_weights(file) if file else None, role="source")

    def _teacher(self, role: str, student: str) -> ExternalModel:
        """Return the model that --teacher names for a role; raises RequestError."""
        given = self.teachers.use(role)
        if given.spec is None:
            model = self.external(given.model or self.settings.request.model, given.weights, role="teacher")
        else:
            given.refuse_other_images(self.dataset.num_classes, self.settings.run.attack_resolution)
            model = self.external(given.spec.name, given.weights, given.spec, role="teacher")
        own = Store(self.settings.request.out).find_trained(student, model.recipe["external"])
        if own is not None:
            raise RequestError(
                f"--teacher {role}: '{given.weights}' is a model that '{student}' itself trained ({own.name}); "
                f"give weights of another defense, or leave the flag out to train the teacher"
            )
        return model

    def _missing_attributes(self, spec: ModelSpec, wanted: tuple[str, ...]) -> list[str]:
        """Return which attributes a defense needs and a model lacks; robobench's own models have all.

        A user's model is built once here, so that one that fails, or whose head(features(images)) does not give its
        logits, is refused before anything is written.
        """
        if spec.name in MODELS and ":" not in spec.name:
            return []
        images = self.dataset.test.images(torch.arange(min(2, len(self.dataset.test)))).to(self.settings.device)
        if self._user_model is None:
            self._user_model = build_model(replace(spec, pretrained=False)).to(self.settings.device)
            logits, notes = try_model(self._user_model.eval(), spec.name, images)
            for note in notes:
                self.settings.note(note)
            if logits.dim() != 2 or logits.shape[1] != spec.num_classes:
                raise RequestError(
                    f"model '{spec.name}' gives logits of shape {tuple(logits.shape)} for {len(images)} images, and "
                    f"the data set has {spec.num_classes} classes; its function gets the number of classes as "
                    "num_classes"
                )
        missing = missing_attributes(self._user_model, wanted)
        if brings_own_normalization(spec.name) and {"features", "head"} <= {*wanted} and not missing:
            check_features_and_head(self._user_model, spec.name, images)
        return missing

    def _device_count_key(self, spec: ModelSpec) -> dict[str, int]:
        """Return the number of devices if weights depend on it beyond rounding: BatchNorm sees one share of a batch."""
        if self.settings.devices == 1 or self.settings.run.sync_batchnorm:
            return {}
        if self._has_batchnorm is None:
            modules = build_model(replace(spec, pretrained=False)).modules()
            self._has_batchnorm = any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in modules)
        return {"devices": self.settings.devices} if self._has_batchnorm else {}
