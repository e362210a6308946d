"""Transfer examples: computed once on the transfer source and stored as float32."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from robobench.attack_engine.options import AttackOptions
from robobench.distributed import collectives, signals
from robobench.evaluation import accuracy
from robobench.execution.context import RunContext
from robobench.planning.plan import AttackSpec, PlannedModel
from robobench.store.artifacts import hash_recipe
from robobench.store.tensors import save_tensors


class TransferExamples:
    """Computes and loads the transfer examples of a run, batch by batch."""

    def __init__(self, context: RunContext) -> None:
        self.context = context

    @property
    def source(self) -> PlannedModel:
        """The model on which the examples are computed."""
        assert self.context.plan.transfer_source is not None
        return self.context.plan.transfer_source

    def key(self, spec: AttackSpec) -> str:
        """Return the key that locks all batches of an attack's examples."""
        return hash_recipe(self._recipe(spec))

    def folders(self, spec: AttackSpec) -> list[Path]:
        """Return the folder of each batch of an attack's examples; compute missing batches."""
        context, plan = self.context, self.context.plan
        batches = accuracy.batch_indices(plan.examples, plan.run.eval_batch_size)
        common = self._recipe(spec) | {"weights": context.weights_digest(self.source)}
        recipes = [{**common, "examples": [int(index[0]), int(index[-1])]} for index in batches]

        def missing() -> list[int]:
            return [n for n, recipe in enumerate(recipes) if context.find("transfer", hash_recipe(recipe)) is None]

        def compute(number: int) -> Tensor:
            module, data = context.load_model(self.source), context.dataset.test
            options = AttackOptions(on_oom_split=context.on_oom_split(self.source, spec.attack.name))
            adv = accuracy.transfer_examples(module, spec.attack, data, batches[number], plan.device, options)
            return adv.cpu()

        if missing():  # reading a complete set needs no lock
            with context.store.lock("transfer", self.key(spec)):
                left = missing()
                for number, adv in zip(left, collectives.map_across_ranks(left, compute), strict=True):
                    collectives.on_rank_zero(partial(self._keep, recipes[number], adv))
                    signals.raise_if_stop_requested()
        return [context.store.folder("transfer", hash_recipe(recipe)) for recipe in recipes]

    def load(self, folder: Path) -> Tensor:
        """Load one batch of examples (B, C, H, W) onto the device."""
        return load_file(folder / "examples.safetensors", device=self.context.plan.device)["adv"]

    def _recipe(self, spec: AttackSpec) -> dict[str, Any]:
        return {
            "transfer_source": self.source.key,
            "attack": spec.recipe,
            "data": self.context.plan.dataset.test_digest,
            **self.context.plan.environment(),
        }

    def _keep(self, recipe: dict[str, Any], adv: Tensor) -> None:
        with self.context.store.create("transfer", hash_recipe(recipe), recipe) as work:
            save_tensors({"adv": adv}, work / "examples.safetensors")
