"""Runs a Precompute stage: one array entry for every training image, computed once and stored."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor

from robobench.core.memory import split_on_oom
from robobench.core.rng import seed_from
from robobench.core.timing import Account, Stopwatch
from robobench.distributed import collectives, signals
from robobench.store.tensors import Array
from robobench.training.base import Precompute
from robobench.training.checkpoint import Checkpoint
from robobench.training.context import ImageSource, StageRecord, TrainRuntime, make_stage_record, reduce_account

MAX_UNSAVED_BYTES = 2**30  # of the array in memory before a part is saved


def run_precompute(
    runtime: TrainRuntime,
    stage: Precompute,
    data: ImageSource,
    stopwatch: Stopwatch,
    checkpoint: Checkpoint | None = None,
) -> tuple[StageRecord, list[Array]]:
    """Compute a stage's array over the training images, in their order. Parts that were saved before are reused.

    Several processes take turns with the batches, and each gets the whole array.

    Returns:
        The stage's record, and the array (N, ...) uint8 or float32 in parts. Saved parts are memory-mapped.
    """
    parts, account = checkpoint.restore_parts() if checkpoint else ([], None)
    stopwatch.accounts[stage.name] = account or Account()
    saved = sum(map(len, parts))
    if saved:
        runtime.reporter.info(f"  {stage.name}: resuming at image {saved + 1}")

    def compute_part(index: Tensor) -> Array:
        torch.manual_seed(seed_from(runtime.seed, stage.name, int(index[0])))
        return stage.function(runtime.batch(data, index, stage.name, 0)).cpu().numpy()

    def compute(index: Tensor) -> Array:
        runtime.draw_threat(stage.name, int(index[0]))
        what, warn = f"stage '{stage.name}'", runtime.reporter.warning
        return np.concatenate(split_on_oom(what, compute_part, index, on_split=warn))

    unsaved: list[Array] = []
    with (
        runtime.reporter.progress_bar(stage.name, len(data) - saved) as advance,
        torch.random.fork_rng(),
        signals.defer_signals() if checkpoint else nullcontext(),
    ):
        batches = torch.split(torch.arange(len(data)), stage.batch_size)
        remaining = [index for index in batches if int(index[0]) >= saved]
        computed = collectives.map_across_ranks(remaining, compute)
        for index in remaining:
            with stopwatch.account(stage.name):
                unsaved.append(next(computed))
            advance(len(index))
            if checkpoint and (checkpoint.due() or sum(part.nbytes for part in unsaved) >= MAX_UNSAVED_BYTES):
                reduce_account(stopwatch.accounts[stage.name])
                parts.append(checkpoint.save_part(saved, unsaved, stopwatch.accounts[stage.name]))
                unsaved = []
                saved += len(parts[-1])
    reduce_account(stopwatch.accounts[stage.name])
    account = stopwatch.accounts[stage.name]
    return make_stage_record(stage, account, warmup_seconds=0.0, epochs=1, images=len(data)), [*parts, *unsaved]
