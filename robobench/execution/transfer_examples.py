"""Transfer examples: computed once on the transfer source, or on several, and stored as float32."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from robobench.attack_engine.options import AttackOptions
from robobench.distributed import collectives, signals
from robobench.evaluation import accuracy
from robobench.execution.context import RunContext
from robobench.planning.plan import AttackSpec
from robobench.store.artifacts import hash_recipe
from robobench.store.tensors import save_tensors


class TransferExamples:
    """Computes and loads the transfer examples of a run, batch by batch."""

    def __init__(self, context: RunContext) -> None:
        self.context = context

    def key(self, spec: AttackSpec) -> str:
        """Return the key that locks all batches of an attack's examples."""
        return hash_recipe(self._recipe(spec))

    def folders(self, spec: AttackSpec) -> list[Path]:
        """Return the folder of each batch of an attack's examples; compute missing batches."""
        context, plan = self.context, self.context.plan
        batches = accuracy.batch_indices(plan.examples, plan.run.eval_batch_size)
        common = self._recipe(spec) | {"weights": context.digest_of(plan.transfer_sources)}
        recipes = [{**common, "examples": [int(index[0]), int(index[-1])]} for index in batches]

        def missing() -> list[int]:
            return [n for n, recipe in enumerate(recipes) if context.find("transfer", hash_recipe(recipe)) is None]

        if missing():  # reading a complete set needs no lock
            with context.store.lock("transfer", self.key(spec)):
                left = missing()
                compute = self._computation(spec, batches)
                for number, adv in zip(left, collectives.map_across_ranks(left, compute), strict=True):
                    collectives.on_rank_zero(partial(self._keep, recipes[number], adv))
                    signals.raise_if_stop_requested()
        return [context.store.folder("transfer", hash_recipe(recipe)) for recipe in recipes]

    def _computation(self, spec: AttackSpec, batches: list[Tensor]) -> Callable[[int], Tensor]:
        """Return a function that maps a batch number to its examples (B, C, H, W) on the CPU."""
        context, source = self.context, self.context.load_source()
        warn = context.on_oom_split(context.plan.transfer_sources[0], spec.attack.name)

        def compute(number: int) -> Tensor:
            data, device, options = context.dataset.test, context.plan.device, AttackOptions(on_oom_split=warn)
            return accuracy.transfer_examples(source, spec.attack, data, batches[number], device, options).cpu()

        return compute

    def load(self, folder: Path) -> Tensor:
        """Load one batch of examples (B, C, H, W) onto the device."""
        return load_file(folder / "examples.safetensors", device=self.context.plan.device)["adv"]

    def _recipe(self, spec: AttackSpec) -> dict[str, Any]:
        return {
            "transfer_source": self.context.plan.transfer_key,
            "attack": spec.recipe,
            "data": self.context.plan.dataset.test_digest,
            **self.context.plan.environment(),
        }

    def _keep(self, recipe: dict[str, Any], adv: Tensor) -> None:
        with self.context.store.create("transfer", hash_recipe(recipe), recipe) as work:
            save_tensors({"adv": adv}, work / "examples.safetensors")
