"""Adversarial images of a run, kept for `--save-adversarial`: in the store by batch, then in one file."""

from __future__ import annotations

from functools import partial

import torch
from safetensors.torch import load_file
from torch import Tensor

from robobench.data.image_file import write_image_file
from robobench.distributed import collectives
from robobench.evaluation.accuracy import batch_indices
from robobench.execution.context import RunContext
from robobench.planning.plan import Cell
from robobench.results.records import EvaluationRecord
from robobench.store.tensors import save_tensors


class AdversarialImages:
    """Keeps the images on which white-box attacks succeed. A batch of a cell is one artifact."""

    def __init__(self, context: RunContext) -> None:
        self.context = context

    def _name(self, key: str, weights: str | None, batch: int) -> str:
        return f"{key}-{(weights or '')[:8]}-{batch:05d}"

    def keeps(self, cell: Cell) -> bool:
        """Return whether the images of a cell are to be kept."""
        plan = self.context.plan
        return plan.save_adversarial is not None and cell.protocol == "white-box" and cell.model in plan.models

    def is_complete(self, key: str, weights: str | None, batches: int | None = None) -> bool:
        """Return whether the first `batches` batches of a cell are kept; default: all."""
        every = -(-self.context.plan.examples // self.context.plan.run.eval_batch_size)
        names = (self._name(key, weights, batch) for batch in range(every if batches is None else batches))
        return all(self.context.find("adversarial", name) is not None for name in names)

    def keep(self, key: str, weights: str | None, batch: int, adv: Tensor) -> None:
        """Keep the successful images (S, C, H, W) of a batch."""

        def write() -> None:
            with self.context.store.create("adversarial", self._name(key, weights, batch), {}) as work:
                save_tensors({"adv": adv}, work / "adversarial.safetensors")

        collectives.on_rank_zero(write)

    def write(self, records: list[EvaluationRecord]) -> None:
        """Write one image per test image: the example of the first attack that succeeded, else the clean image.

        Args:
            records: finished white-box records of one model.
        """
        if records:
            collectives.on_rank_zero(partial(self._write, records))
        else:
            self.context.reporter.warning("--save-adversarial: no attack finished, so no file is written")

    def _write(self, records: list[EvaluationRecord]) -> None:
        plan, test = self.context.plan, self.context.dataset.test
        batches = batch_indices(plan.examples, plan.run.eval_batch_size)
        adv = torch.cat([test.images(index).cpu() for index in batches])
        attacked = torch.zeros(len(adv), dtype=torch.bool)
        for record in records:
            for number, index in enumerate(batches):
                name = self._name(record["key"], record["weights_digest"], number)
                found = load_file(self.context.store.folder("adversarial", name) / "adversarial.safetensors")["adv"]
                clean, robust = (
                    torch.tensor([(record[bits] or "")[i] == "1" for i in index.tolist()])
                    for bits in ("clean_bits", "robust_bits")
                )
                rows = index[clean & ~robust]
                new = ~attacked[rows]
                adv[rows[new]] = found[new]
                attacked[rows] = True
        file = plan.save_adversarial
        assert file is not None
        write_image_file(file, adv, test.labels[: plan.examples], str(plan.attacks[0].threat))
        self.context.reporter.info(f"adversarial images: {file} ({int(attacked.sum())} of {len(adv)} are changed)")
