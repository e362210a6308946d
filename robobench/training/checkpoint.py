"""Checkpoints of a stage: a killed run resumes with exactly the same result.

Random numbers are stateless, so the state of a stage is its tensors (objective, optimizer, sums of the metrics), its
position and its account. Tensors are safetensors, everything else is JSON; nothing is unpickled.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from robobench.core.timing import Account
from robobench.distributed import collectives, signals
from robobench.store.partial import PartialResults
from robobench.store.tensors import Array, save_array, save_tensors

MAX_SAVE_FRACTION = 0.02  # of wall time


class BestEpoch(Protocol):
    """The part of `EpochSelection` that a checkpoint saves."""

    weights: dict[str, Tensor]

    def restore(self, epoch_metrics: list[dict[str, float]], weights: dict[str, Tensor]) -> None: ...


@dataclass
class StageProgress:
    """Position of a training stage between two steps."""

    epoch: int = 0
    step: int = 0  # steps taken of this epoch
    accumulation_steps: int = 1  # micro-batches per batch; above 1 after memory ran out
    warmup_seconds: float = 0.0
    epoch_metrics: list[dict[str, float]] = field(default_factory=list)  # mean metrics of finished epochs
    sums: dict[str, Tensor] = field(default_factory=dict)  # of this epoch's metrics over its images so far

    def end_epoch(self, metrics: dict[str, float]) -> None:
        """Move on to the next epoch."""
        self.epoch, self.step, self.sums = self.epoch + 1, 0, {}
        self.epoch_metrics.append(metrics)


class Checkpoint:
    """Saves a stage at intervals, and restores it.

    Saving takes at most MAX_SAVE_FRACTION of wall time: if it is slow, the interval grows.

    Args:
        every: seconds between two saves.
        selections: by name; each keeps the best epoch so far, which is saved with the stage.
        average: averaged weights, saved with the stage.
    """

    def __init__(
        self,
        states: PartialResults,
        every: float,
        clock: Callable[[], float] = time.monotonic,
        selections: Mapping[str, BestEpoch] | None = None,
        average: nn.Module | None = None,
    ) -> None:
        self.states, self.every, self.clock = states, every, clock
        self.selections, self.average = selections or {}, average
        self.saved, self.cost = clock(), 0.0

    def due(self) -> bool:
        """Return whether to save now: rank 0's interval is over, or a signal asks to stop."""
        wait = max(self.every, self.cost / MAX_SAVE_FRACTION)
        over = collectives.is_rank_zero() and self.clock() - self.saved >= wait
        return bool(collectives.all_reduce_max(signals.stop_requested() or over))

    @contextmanager
    def _timed(self) -> Iterator[None]:
        begun = self.clock()
        yield
        self.saved = self.clock()
        self.cost = self.saved - begun
        signals.raise_if_stop_requested()

    # --- Train stages -------------------------------------------------------------------------

    def save(
        self, objective: nn.Module, optimizer: torch.optim.Optimizer, position: StageProgress, account: Account
    ) -> None:
        """Save everything that the rest of the stage depends on. Rank 0 writes its state; other ranks wait.

        Raises:
            StorageError: it cannot be written; the earlier save is unchanged.
            Interrupted: a signal asked to stop; the stage was saved before.
        """
        with self._timed():
            collectives.on_rank_zero(lambda: self._write(objective, optimizer, position, account))

    def _write(
        self, objective: nn.Module, optimizer: torch.optim.Optimizer, position: StageProgress, account: Account
    ) -> None:
        tensors = {f"objective/{k}": v for k, v in objective.state_dict().items()}
        tensors |= {f"sums/{name}": value for name, value in position.sums.items()}
        for which, selection in self.selections.items():
            tensors |= {f"{which}/{name}": value for name, value in selection.weights.items()}
        if self.average:
            tensors |= {f"average/{name}": value for name, value in self.average.state_dict().items()}
        plain: dict[str, dict[str, Any]] = {}
        for index, state in optimizer.state_dict()["state"].items():
            for name, value in state.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer/{index}/{name}"] = value
                else:
                    plain.setdefault(str(index), {})[name] = value
        progress = {**vars(position), "sums": list(position.sums)}
        try:
            text = json.dumps({"position": progress, "account": asdict(account), "optimizer": plain})
            save = {name: value.detach() for name, value in tensors.items()}
        except (TypeError, AttributeError) as err:  # from an optimizer or the extra state of a plug-in
            self.every = math.inf
            self.states.store.log(
                f"this stage cannot be saved before its end: its state is neither tensors nor JSON ({err})"
            )
            return
        with self.states.saving(self.states.last + 1) as work:
            save_tensors(save, work / "state.safetensors")
            (work / "state.json").write_text(text)

    def restore(self, objective: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[StageProgress, Account] | None:
        """Restore the newest save that is undamaged and fits; return None if there is none.

        Any number of processes can resume: rank 0 reads for all.
        """
        restored, state = collectives.on_rank_zero(lambda: (self._read(objective, optimizer), optimizer.state_dict()))
        if restored and not collectives.is_rank_zero():
            optimizer.load_state_dict(state)
            position, account = restored
            position.sums = {name: value.to(_device(objective)) for name, value in position.sums.items()}
            account.cpu_seconds = 0.0  # counted in rank 0's account
        return restored

    def _read(self, objective: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[StageProgress, Account] | None:
        folder = self.states.newest()
        if folder is None:
            return None
        try:
            saved = json.loads((folder / "state.json").read_text())
            tensors = load_file(folder / "state.safetensors", device=str(_device(objective)))
            expected = objective.state_dict()
            found = _under("objective/", tensors)
            if found.keys() != expected.keys() or any(found[k].shape != v.shape for k, v in expected.items()):
                raise ValueError("saved by another objective")
            account = Account(**saved["account"])
            sums = _under("sums/", tensors)
            position = StageProgress(
                **{**saved["position"], "sums": {name: sums[name] for name in saved["position"]["sums"]}}
            )
            optimizer_state = _optimizer_state(optimizer, _under("optimizer/", tensors), saved["optimizer"])
        except (OSError, ValueError, KeyError, IndexError, TypeError, SafetensorError):
            self.states.quarantine(folder)
            return None
        for which, selection in self.selections.items():
            weights = {k: v.cpu() for k, v in _under(f"{which}/", tensors).items()}
            selection.restore(position.epoch_metrics, weights)
        if self.average:
            self.average.load_state_dict(_under("average/", tensors))
        objective.load_state_dict(found)
        optimizer.load_state_dict(optimizer_state)
        return position, account

    # --- Precompute stages --------------------------------------------------------------------

    def save_part(self, begin: int, pieces: Sequence[Array], account: Account) -> Array:
        """Save the entries from image `begin` on, and return them memory-mapped. Earlier parts are kept.

        Raises:
            StorageError, Interrupted: as in `save`.
        """

        def write() -> None:
            with self.states.saving(begin, keep=True) as work:
                save_array(pieces, work / "array.npy")
                (work / "state.json").write_text(json.dumps(asdict(account)))

        with self._timed():
            collectives.on_rank_zero(write)
        return self._part(begin)

    def _part(self, begin: int) -> Array:
        """Return a saved part, memory-mapped."""
        folder = self.states.store.folder(self.states.kind, f"{begin:08d}")
        part: Array = np.load(folder / "array.npy", mmap_mode="r", allow_pickle=False)
        return part

    def restore_parts(self) -> tuple[list[Array], Account | None]:
        """Return the consecutive parts from image 0 on, and the account saved with the last one."""
        begins, account = collectives.on_rank_zero(self._consecutive_parts)
        if account and not collectives.is_rank_zero():
            account.cpu_seconds = 0.0
        return [self._part(begin) for begin in begins], account

    def _consecutive_parts(self) -> tuple[list[int], Account | None]:
        begins, account, begin = list[int](), None, 0
        while (folder := self.states.find(begin)) is not None:
            begins.append(begin)
            account = Account(**json.loads((folder / "state.json").read_text()))
            begin += len(self._part(begin))
        return begins, account


def _device(module: nn.Module) -> torch.device:
    return next((t.device for t in (*module.parameters(), *module.buffers())), torch.device("cpu"))


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _optimizer_state(
    optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], plain: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Return the state dict of a new optimizer with the saved values, in the memory layout of each parameter.

    Fused kernels read parameter and state in memory order, so that another layout would pair the wrong values.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in plain.items()}
    for where, value in tensors.items():
        index, name = where.split("/", 1)
        like = parameters[int(index)]
        if value.shape == like.shape and value.dim() > 0:
            value = torch.empty_like(like, dtype=value.dtype, requires_grad=False).copy_(value)
        state.setdefault(int(index), {})[name] = value
    return {**optimizer.state_dict(), "state": state}
