"""One optimizer step, with gradient accumulation over micro-batches when memory runs out."""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from robobench.core.memory import is_out_of_memory
from robobench.distributed import collectives
from robobench.errors import OutOfMemoryError
from robobench.training.base import Batch, Loss, Train
from robobench.training.config import NO_SERVICES, TrainServices
from robobench.training.context import TrainRuntime
from robobench.training.inner_maximization import RecordedAttacks
from robobench.training.sampling import batch_sizes
from robobench.training.weight_perturbation import call_with_weights, perturbed_weights


def one_step(
    runtime: TrainRuntime,
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    accumulation_steps: int = 1,
    weight: float = 1.0,
    *,
    services: TrainServices = NO_SERVICES,
    perturb: bool = True,
    wrapped: nn.Module | None = None,
) -> Loss:
    """Run forward and backward passes and an optimizer step; return the loss of the batch.

    Args:
        accumulation_steps: number of micro-batches whose gradients are added up.
        weight: factor on the gradient, for one process's shard of a larger batch.
        services: weight perturbation and gradient clipping.
        perturb: False during the warm-up of the weight perturbation.
        wrapped: the objective as wrapped for several devices; its gradients are averaged over them.
    """
    pieces, batch_size = micro_batches(batch, accumulation_steps), len(batch.index)
    attacks, wrapped = [RecordedAttacks() for _ in pieces], wrapped or objective
    total, metrics, weights = torch.zeros(()), dict[str, Tensor](), dict[str, Tensor]()
    if services.awp_gamma and perturb:
        passes = list(zip(pieces, attacks, strict=True))
        weights = perturbed_weights(runtime, objective, passes, services.awp_gamma, weight)
    for piece, recorded in zip(pieces, attacks, strict=True):
        with runtime.autocast(), recorded.replay() if weights else nullcontext():
            loss: Loss = call_with_weights(objective, wrapped, weights, piece) if weights else wrapped(piece)
        share = len(piece.index) / batch_size
        has_gradient = loss.total.requires_grad
        if has_gradient:
            scale = weight * share
            torch.autograd.backward(loss.total if scale == 1 else loss.total * scale)
        if len(pieces) > 1:
            total = total.to(loss.total.device) + share * loss.total.detach()
            metrics |= {name: metrics.get(name, 0) + share * value.detach() for name, value in loss.metrics.items()}
    if has_gradient:
        if services.clip_grad:
            trained = (p for group in optimizer.param_groups for p in group["params"])
            nn.utils.clip_grad_norm_(trained, services.clip_grad)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss if len(pieces) == 1 else Loss(total, metrics)


def micro_batches(batch: Batch, count: int) -> list[Batch]:
    """Split a batch into micro-batches of nearly equal size, in order."""
    if count == 1:
        return [batch]
    begin, pieces = 0, []
    for size in batch_sizes(len(batch.index), math.ceil(len(batch.index) / count)):
        rows = torch.arange(begin, begin + size, device=batch.index.device)
        picked = (batch.images[rows], batch.labels[rows], batch.index[rows])
        pieces.append(Batch(*picked, batch.epoch, batch.rng[rows]))
        begin += size
    return pieces


def increase_accumulation(stage: Train, accumulation_steps: int, batch_size: int, err: Exception) -> int:
    """Return twice the number of micro-batches, after memory ran out.

    Raises:
        OutOfMemoryError: the batch cannot be split further, or the stage's loss depends on the whole batch.
        PeerLost: memory ran out in one of several processes. It cannot split a batch alone.
        Exception: `err` itself, if it has another cause.
    """
    if not is_out_of_memory(err):
        raise err
    if collectives.world_size() > 1:
        why = f"stage '{stage.name}' ran out of memory; use more devices or lower --batch-size"
        raise collectives.PeerLost(why, local=True) from err
    if stage.whole_batch:
        raise OutOfMemoryError(
            f"stage '{stage.name}' ran out of memory with batches of {batch_size}; its loss depends on the whole "
            "batch, which is therefore never split: lower --batch-size or choose a smaller model"
        )
    if batch_size < 4 * accumulation_steps:  # BatchNorm needs two images
        raise OutOfMemoryError(
            f"stage '{stage.name}' ran out of memory with {math.ceil(batch_size / accumulation_steps)} images at once; "
            "choose a smaller model or another device"
        )
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return 2 * accumulation_steps
