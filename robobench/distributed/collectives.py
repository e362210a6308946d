"""Collective operations of the processes that train or evaluate one model together.

With one process, every function returns its input. A method needs `gather_batch` and `mean_over_batch` only if its
loss is not a mean over the images of the batch. Each process sees one shard of every batch, and the training loop
weights gradients by the shards' sizes.
"""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from robobench.errors import Interrupted, RobobenchError

A = TypeVar("A")
B = TypeVar("B")

_group: Any = None  # the Fabric object of this process group; None with one process


class PeerLost(BaseException):
    """A process failed or disappeared, so collective operations can no longer complete.

    Derives from BaseException: an Exception would become a failed cell.

    Attributes:
        local: whether the error occurred in this process, not in another one.
    """

    def __init__(self, why: object, local: bool) -> None:
        where = f"process {rank()} of {world_size()}"
        reason = " ".join(str(why).split())
        super().__init__(f"{where} stopped: {reason}" if local else f"{where} lost another process: {reason}")
        self.local = local


@contextmanager
def process_group(group: Any) -> Iterator[None]:
    """Use the process group of a Fabric object inside the block."""
    global _group
    _group, in_step, lost = group, False, False
    try:
        yield
        in_step = True
    except PeerLost:
        lost = True
        raise
    except Interrupted:  # raised in all processes at the same step
        in_step = True
        raise
    finally:
        if in_step:
            with _wrap_errors():
                dist.barrier()
        if not lost:
            dist.destroy_process_group()
        _group = None


def world_size() -> int:
    """Return the number of processes in the group; 1 without a group."""
    return int(_group.world_size) if _group is not None else 1


def rank() -> int:
    """Return the number of this process, counted from 0."""
    return int(_group.global_rank) if _group is not None else 0


def is_rank_zero() -> bool:
    """Return whether this process writes files and messages."""
    return rank() == 0


def gather_batch(values: Tensor) -> tuple[Tensor, int]:
    """Concatenate the rows that all processes computed for their shards of a batch.

    Args:
        values: (b, ...), one row per image of this process's shard. Shards may differ in size.

    Returns:
        The rows of the whole batch (B, ...), and the index of this process's first row. Gradients flow back to the rows
        of every process.
    """
    if world_size() == 1:
        return values, 0
    from torch.distributed.nn.functional import all_reduce

    sizes = torch.zeros(world_size(), dtype=torch.int64, device=values.device)
    sizes[rank()] = len(values)
    with _wrap_errors():
        dist.all_reduce(sizes)
        before, after = int(sizes[: rank()].sum()), int(sizes[rank() + 1 :].sum())
        rows = [values.new_zeros(n, *values.shape[1:]) for n in (before, after)]
        whole: Tensor = all_reduce(torch.cat((rows[0], values, rows[1])))  # type: ignore[no-untyped-call]
        return whole, before


def mean_over_batch(values: Tensor, images: int) -> Tensor:
    """Average the shards' means over the whole batch, without gradient.

    Args:
        values: of any shape, each a mean over this process's shard.
        images: number of images in the shard.
    """
    values = values.detach()
    if world_size() == 1:
        return values
    weighted = all_reduce_sums([*(values.reshape(-1) * images), values.new_tensor(images)])
    return torch.stack(weighted[:-1]).view_as(values) / weighted[-1]


@contextmanager
def _wrap_errors() -> Iterator[None]:
    """Turn an error of torch.distributed into PeerLost."""
    try:
        yield
    except RuntimeError as err:
        raise PeerLost(err, local=False) from err


def local_shard(index: Tensor) -> Tensor:
    """Return this process's shard of a batch: (B,) -> (b,). Sizes differ by at most one."""
    return index if world_size() == 1 else torch.tensor_split(index, world_size())[rank()]


def shard_weight(shard: int, batch: int) -> float:
    """Return the weight of a mean over `shard` of `batch` images.

    The plain average of the weighted means over the processes is the mean over all images.
    """
    return shard * world_size() / batch


class _DetachedMetrics(nn.Module):
    """An objective whose metrics have no gradient: DistributedDataParallel expects one through every output."""

    def __init__(self, objective: nn.Module) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, batch: Any) -> Any:
        loss = self.objective(batch)
        return replace(loss, metrics={name: value.detach() for name, value in loss.metrics.items()})


def wrap_ddp(objective: nn.Module) -> nn.Module:
    """Wrap an objective in DistributedDataParallel, so that every process gets the average gradient."""
    if world_size() == 1 or not any(p.requires_grad for p in objective.parameters()):
        return objective
    wrapped: nn.Module = _group.strategy.setup_module(_DetachedMetrics(objective))
    return wrapped


def broadcast_module(module: nn.Module) -> None:
    """Copy rank 0's parameters and buffers to all processes."""
    if world_size() > 1:
        with torch.no_grad(), _wrap_errors():
            for value in (*module.parameters(), *module.buffers()):
                dist.broadcast(value, 0)


def all_reduce_sums(values: Sequence[Tensor]) -> list[Tensor]:
    """Sum each scalar tensor over the processes."""
    if world_size() == 1:
        return list(values)
    sums = torch.stack([value.detach().to(_group.device) for value in values])
    with _wrap_errors():
        dist.all_reduce(sums)
    return list(sums.unbind())


def all_reduce_mean(values: Sequence[Tensor]) -> None:
    """Average tensors of any shape over the processes, in place."""
    if world_size() > 1:
        with _wrap_errors():
            for value in values:
                dist.all_reduce(value.div_(world_size()))


def all_reduce_sum(value: float) -> float:
    """Sum a number over the processes."""
    return _all_reduce(value, dist.ReduceOp.SUM)


def all_reduce_max(value: float) -> float:
    """Return the largest of the processes' numbers."""
    return _all_reduce(value, dist.ReduceOp.MAX)


def _all_reduce(value: float, op: dist.ReduceOp.RedOpType) -> float:
    if world_size() == 1:
        return value
    reduced = torch.tensor(float(value), dtype=torch.float64, device=_group.device)
    with _wrap_errors():
        dist.all_reduce(reduced, op)
    return reduced.item()


def on_rank_zero(function: Callable[[], B]) -> B:
    """Call a function on rank 0 and return its result, or raise its error, in every process."""
    if world_size() == 1:
        return function()
    results: list[Any] = [_attempt(function) if is_rank_zero() else None]
    with _wrap_errors():
        dist.broadcast_object_list(results, 0)
    return _unwrap(results)[0]  # type: ignore[no-any-return]


def map_across_ranks(items: Sequence[A], function: Callable[[A], B]) -> Iterator[B]:
    """Apply a function to every item, in parallel over the processes. Every process gets all results, in order.

    An error in one process is raised in all.
    """
    for begin in range(0, len(items), world_size()):
        chunk = items[begin : begin + world_size()]
        if world_size() == 1:
            yield function(chunk[0])
            continue
        local = _attempt(functools.partial(function, chunk[rank()])) if rank() < len(chunk) else (None, None)
        results: list[Any] = [None] * world_size()
        with _wrap_errors():
            dist.all_gather_object(results, local)
        yield from _unwrap(results)[: len(chunk)]


def _attempt(function: Callable[[], B]) -> tuple[B | None, Exception | None]:
    """Return a function's result and None, or None and its error in a form that can be pickled."""
    try:
        return function(), None
    except Exception as err:
        try:
            pickle.loads(pickle.dumps(err))
            return None, err
        except Exception:
            return None, RobobenchError(f"{type(err).__name__}: {err}")


def _unwrap(results: list[tuple[Any, Exception | None]]) -> list[Any]:
    """Return the values; raise the first error."""
    for _, err in results:
        if err is not None:
            raise err
    return [value for value, _ in results]
