"""The processes of one run that train or evaluate one network in step, and what they tell each other.

Alone, everything here is the identity. A method needs `gather` and `mean` only where its loss is no mean over the
images of the batch: each process sees its own share of every batch, and the core weighs gradients by the shares.
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

_group: Any = None  # the Fabric object that joined this process to others; None alone


class PeerLost(BaseException):
    """This process can no longer keep step with the others. No Exception, which would become a row.

    `own` says that the reason lies here, not in another process that is gone.
    """

    def __init__(self, why: object, own: bool) -> None:
        where = f"process {rank()} of {world_size()}"
        said = " ".join(str(why).split())
        super().__init__(f"{where} stopped: {said}" if own else f"{where} lost another one: {said}")
        self.own = own


@contextmanager
def process_group(group: Any) -> Iterator[None]:
    """Be one of the processes that a Fabric object has joined, inside the block."""
    global _group
    _group, in_step, lost = group, False, False
    try:
        yield
        in_step = True
    except PeerLost:
        lost = True
        raise
    except Interrupted:  # all leave at the same step
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
    """Return the number of processes that work in step: 1 alone."""
    return int(_group.world_size) if _group is not None else 1


def rank() -> int:
    """Return the number of this process, counted from 0."""
    return int(_group.global_rank) if _group is not None else 0


def is_rank_zero() -> bool:
    """Say whether this is the process that writes and speaks."""
    return rank() == 0


def gather_batch(values: Tensor) -> tuple[Tensor, int]:
    """Put together what the processes hold for the images of a batch.

    Args:
        values: (b, ...), a row an image of this process's share; shares may differ in size.

    Returns:
        (B, ...) for the whole batch, with a gradient back to every process's own rows, and where this process's rows
        begin in it.
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
    """Average over the whole batch what is a mean over each process's share; without gradient.

    Args:
        values: of any shape, a mean over the `images` of this process's share.
    """
    values = values.detach()
    if world_size() == 1:
        return values
    weighed = all_reduce_sums([*(values.reshape(-1) * images), values.new_tensor(images)])
    return torch.stack(weighed[:-1]).view_as(values) / weighed[-1]


@contextmanager
def _wrap_errors() -> Iterator[None]:
    """Turn what goes wrong between processes into Lost."""
    try:
        yield
    except RuntimeError as err:
        raise PeerLost(err, own=False) from err


def local_shard(index: Tensor) -> Tensor:
    """Return this process's part of a batch: (B,) -> (b,), sizes that differ by one at most."""
    return index if world_size() == 1 else torch.tensor_split(index, world_size())[rank()]


def shard_weight(mine: int, whole: int) -> float:
    """Return the factor that makes the processes' plain average one over images, for a share of `mine` of `whole`."""
    return mine * world_size() / whole


class _Plain(nn.Module):
    """An objective whose metrics carry no gradient: DistributedDataParallel expects one through all it returns."""

    def __init__(self, objective: nn.Module) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, batch: Any) -> Any:
        loss = self.objective(batch)
        return replace(loss, metrics={name: value.detach() for name, value in loss.metrics.items()})


def wrap_ddp(objective: nn.Module) -> nn.Module:
    """Return the objective as DistributedDataParallel: its backward leaves the average gradient on every process."""
    if world_size() == 1 or not any(p.requires_grad for p in objective.parameters()):
        return objective
    wrapped: nn.Module = _group.strategy.setup_module(_Plain(objective))
    return wrapped


def broadcast_module(module: nn.Module) -> None:
    """Copy the first process's parameters and buffers to all."""
    if world_size() > 1:
        with torch.no_grad(), _wrap_errors():
            for value in (*module.parameters(), *module.buffers()):
                dist.broadcast(value, 0)


def all_reduce_sums(values: Sequence[Tensor]) -> list[Tensor]:
    """Add up scalar tensors over the processes."""
    if world_size() == 1:
        return list(values)
    added = torch.stack([value.detach().to(_group.device) for value in values])
    with _wrap_errors():
        dist.all_reduce(added)
    return list(added.unbind())


def all_reduce_sum(value: float) -> float:
    """Add up a number over the processes."""
    return _reduced(value, dist.ReduceOp.SUM)


def all_reduce_max(value: float) -> float:
    """Return the largest of the processes' numbers."""
    return _reduced(value, dist.ReduceOp.MAX)


def _reduced(value: float, how: dist.ReduceOp.RedOpType) -> float:
    if world_size() == 1:
        return value
    found = torch.tensor(float(value), dtype=torch.float64, device=_group.device)
    with _wrap_errors():
        dist.all_reduce(found, how)
    return found.item()


def on_rank_zero(make: Callable[[], B]) -> B:
    """Let the first process do something for all; its result, or its error, is everybody's."""
    if world_size() == 1:
        return make()
    said: list[Any] = [_attempt(make) if is_rank_zero() else None]
    with _wrap_errors():
        dist.broadcast_object_list(said, 0)
    return _settled(said)[0]  # type: ignore[no-any-return]


def map_across_ranks(items: Sequence[A], work: Callable[[A], B]) -> Iterator[B]:
    """Work on every item, one at a time in each process; all processes get all results, in the items' order.

    An error in one process is raised in all.
    """
    for begin in range(0, len(items), world_size()):
        some = items[begin : begin + world_size()]
        if world_size() == 1:
            yield work(some[0])
            continue
        mine = _attempt(functools.partial(work, some[rank()])) if rank() < len(some) else (None, None)
        said: list[Any] = [None] * world_size()
        with _wrap_errors():
            dist.all_gather_object(said, mine)
        yield from _settled(said)[: len(some)]


def _attempt(make: Callable[[], B]) -> tuple[B | None, Exception | None]:
    """Return what comes of it, or an error that can be sent."""
    try:
        return make(), None
    except Exception as err:
        try:
            pickle.loads(pickle.dumps(err))
            return None, err
        except Exception:
            return None, RobobenchError(f"{type(err).__name__}: {err}")


def _settled(said: list[tuple[Any, Exception | None]]) -> list[Any]:
    """Return the results; raise the first error."""
    for _, err in said:
        if err is not None:
            raise err
    return [value for value, _ in said]
