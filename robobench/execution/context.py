"""State that the jobs of a run share: plan, data, store, loaded model, failures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from robobench.attack_engine.randomized import adapt_model
from robobench.core.console import Reporter
from robobench.core.memory import keep_freed_memory
from robobench.data.split import Dataset
from robobench.distributed import collectives
from robobench.errors import ArtifactError
from robobench.evaluation.source_ensemble import LogitMean
from robobench.execution.tracking import Tracking
from robobench.models.build import build_model
from robobench.models.wrapper import PreprocessedModel
from robobench.planning.plan import Plan, PlannedModel
from robobench.results.records import TrainingTiming
from robobench.store.artifacts import WEIGHT_FILES, Store, hash_recipe


class RankZeroStore(Store):
    """Store of a run with several processes: only rank 0 takes locks and removes files."""

    @contextmanager
    def lock(self, kind: str, name: str) -> Iterator[None]:
        """Hold the lock of an artifact for all processes."""
        with super().lock(kind, name) if collectives.is_rank_zero() else nullcontext():
            yield

    def open_partial(self, kind: str) -> None:
        """Begin or resume unfinished work, on rank 0 only."""
        if collectives.is_rank_zero():
            super().open_partial(kind)

    def discard(self, kind: str) -> None:
        """Remove unfinished work, on rank 0 only."""
        if collectives.is_rank_zero():
            super().discard(kind)


class RunContext:
    """Shared state of a run. All processes execute the same calls in the same order; rank 0 reads the store for all."""

    def __init__(self, plan: Plan, dataset: Dataset, reporter: Reporter) -> None:
        self.plan, self.dataset, self.reporter = plan, dataset, reporter
        self.store = RankZeroStore(plan.out, overwrite=plan.overwrite, log=reporter.warning)
        self.tracking = Tracking(plan, reporter)
        self.failures: dict[str, str] = {}  # key of a training or a cell -> reason
        self._loaded: tuple[tuple[str, str], PreprocessedModel] | None = None  # the last model stays in memory
        self._bpda: nn.Module | None = None  # stays in memory once it is needed
        self._split_tasks: set[tuple[str, str]] = set()  # (model, task) that ran out of memory
        torch.set_num_threads(plan.threads)
        keep_freed_memory()

    def find(self, kind: str, name: str) -> Path | None:
        """Return an artifact's folder if rank 0 finds it undamaged, else None."""
        return collectives.on_rank_zero(lambda: self.store.find(kind, name))

    def timing(self, model: PlannedModel) -> TrainingTiming:
        """Return the timing record of a stored model; raises ArtifactError if it is missing."""
        folder = self.store.find("model", model.folder, "timing.json")
        if folder is None:
            raise self._missing(model)
        return json.loads((folder / "timing.json").read_text())  # type: ignore[no-any-return]

    def weights_digest(self, model: PlannedModel) -> str:
        """Return the first 16 digits of the SHA-256 of a stored model's weights."""
        return self.store.digest("model", model.folder, WEIGHT_FILES[model.selection])[:16]

    def load_model(self, model: PlannedModel) -> PreprocessedModel:
        """Load a stored model in eval mode on the device; raises ArtifactError if it is missing."""
        wanted = model.identity
        if self._loaded is None or self._loaded[0] != wanted:
            self._loaded = (wanted, self._load(model))
        return self._loaded[1]

    def _load(self, model: PlannedModel) -> PreprocessedModel:
        folder = self.find("model", model.folder)
        if folder is None:
            raise self._missing(model)
        module = build_model(replace(model.spec, pretrained=False)).to(self.plan.device)
        module.load_state_dict(load_file(folder / WEIGHT_FILES[model.selection], device=self.plan.device))
        return module.eval()

    def digest_of(self, models: Sequence[PlannedModel]) -> str:
        """Return the digest of one model's weights, or one digest of the weights of several."""
        digests = [self.weights_digest(model) for model in models]
        return digests[0] if len(digests) == 1 else hash_recipe({"weights": digests})

    def load_source(self) -> nn.Module:
        """Load the model that transfer examples are made on: the transfer source, or the mean of several's logits."""
        sources = self.plan.transfer_sources
        if len(sources) == 1:
            return self.load_model(sources[0])
        return LogitMean([self._load(m) for m in sources], [f"'{m.name}' (seed {m.seed})" for m in sources])

    def load_attacked(self, model: PlannedModel) -> nn.Module:
        """Load a model as attacks see it: with the gradient of --bpda, and averaged and judged as --eot says."""
        if self.plan.bpda is not None and self._bpda is None:
            self._bpda = self.load_model(self.plan.bpda)
        return adapt_model(self.load_model(model), self._bpda, self.plan.randomness)

    def on_oom_split(self, model: PlannedModel, task: str) -> Callable[[str], None]:
        """Return a callback that warns when a task runs out of memory with this model, the first time only."""

        def warn(text: str) -> None:
            if (model.name, task) not in self._split_tasks:
                self._split_tasks.add((model.name, task))
                self.reporter.warning(f"{model.name}: {text}")

        return warn

    def forget_model(self) -> None:
        """Free the model that was loaded last."""
        self._loaded = None

    def _missing(self, model: PlannedModel) -> ArtifactError:
        return ArtifactError(f"the trained model '{model.name}' is not in '{self.plan.out}'; rerun the command")
