"""Unfinished work on disk: where a stage stands, so that a killed run goes on with the same result.

Randomness is stateless, so a training is its tensors (of the objective, of the optimizer, sums of the epoch's
metrics), its place and its accounts. Tensors are safetensors, everything else is JSON; nothing is unpickled.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from robobench import interrupts, processes
from robobench.curves import Curves
from robobench.store import Store
from robobench.timing import Account

if TYPE_CHECKING:
    from robobench.probe import Selection

SHARE = 0.02  # of wall time that saving may cost


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a state dict as safetensors, each tensor contiguous and its own."""
    save_file({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}, path)


Array = np.ndarray[Any, Any]


def save_rows(parts: Sequence[Array], path: Path) -> None:
    """Write arrays below each other as one .npy file, without putting them together in memory."""
    shape = (sum(map(len, parts)), *parts[0].shape[1:])
    header = {"descr": np.lib.format.dtype_to_descr(parts[0].dtype), "fortran_order": False, "shape": shape}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            file.write(np.ascontiguousarray(part).data)


class Unfinished:
    """Numbered states of one piece of unfinished work; each is an artefact of the store."""

    def __init__(self, store: Store, kind: str) -> None:
        self.store, self.kind = store, kind
        store.begin(kind)

    def find(self, number: int) -> Path | None:
        """Return the folder of a state, if it is there and whole."""
        return self.store.find(self.kind, f"{number:08d}")

    def newest(self) -> Path | None:
        """Return the folder of the last whole state."""
        found = (self.find(number) for number in sorted(self._numbers(), reverse=True))
        return next((folder for folder in found if folder is not None), None)

    @property
    def last(self) -> int:
        """The highest number of a state, -1 where there is none."""
        return max(self._numbers(), default=-1)

    def _numbers(self) -> list[int]:
        folder = self.store.root / "artifacts" / self.kind
        return [int(path.name) for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []

    def set_aside(self, folder: Path) -> None:
        """Put a state out of the way that is whole and of no use."""
        aside = self.store.set_aside(folder, ".damaged-")
        self.store.tell(f"'{folder}' does not fit this work; it was set aside as '{aside.name}'")

    @contextmanager
    def saving(self, number: int, *, keep: bool = False) -> Iterator[Path]:
        """Give a folder to fill; when it is whole, earlier states are removed unless they are to be kept."""
        with self.store.building(self.kind, f"{number:08d}", {}) as work:
            yield work
        for other in () if keep else self._numbers():
            if other != number:
                shutil.rmtree(self.store.folder(self.kind, f"{other:08d}"), ignore_errors=True)

    def clear(self) -> None:
        """Remove every state: the work is done."""
        self.store.discard(self.kind)


@dataclass
class Position:
    """Where a training stage stands: between two steps."""

    epoch: int = 0
    step: int = 0  # steps taken of this epoch
    parts: int = 1  # pieces a batch is cut into, since memory ran out
    warmup: float = 0.0  # seconds
    lines: list[dict[str, float]] = field(default_factory=list)  # mean metrics of finished epochs
    sums: dict[str, Tensor] = field(default_factory=dict)  # of this epoch's metrics, over images

    def end_epoch(self, means: dict[str, float]) -> None:
        """Go to the next epoch."""
        self.epoch, self.step, self.sums = self.epoch + 1, 0, {}
        self.lines.append(means)


class Checkpoint:
    """Saves a stage from time to time, and brings it back.

    Saving costs at most `SHARE` of wall time: where it is slow, it is done less often than asked.

    Args:
        every: seconds between two saves.
        selection: what keeps the best epoch so far, saved with the stage.
    """

    def __init__(
        self,
        states: Unfinished,
        every: float,
        clock: Callable[[], float] = time.monotonic,
        selection: Selection | None = None,
    ) -> None:
        self.states, self.every, self.clock, self.selection = states, every, clock, selection
        self.saved, self.cost = clock(), 0.0

    def due(self) -> bool:
        """Say whether it is time to save: the first process's interval is over, or a signal asks to stop."""
        wait = max(self.every, self.cost / SHARE)
        over = processes.first() and self.clock() - self.saved >= wait
        return bool(processes.highest(interrupts.asked() or over))

    @contextmanager
    def _timed(self) -> Iterator[None]:
        begun = self.clock()
        yield
        self.saved = self.clock()
        self.cost = self.saved - begun
        interrupts.leave_if_asked()

    # --- a training stage ---------------------------------------------------------------------

    def save(
        self, objective: nn.Module, optimizer: torch.optim.Optimizer, position: Position, account: Account
    ) -> None:
        """Write everything the rest of the stage depends on; raises Interrupted after it if a signal came.

        Of several processes the first one's state is written; all wait for it.

        Raises:
            StorageError: it cannot be written; the earlier state is as it was.
        """
        with self._timed():
            processes.from_first(lambda: self._write(objective, optimizer, position, account))

    def _write(
        self, objective: nn.Module, optimizer: torch.optim.Optimizer, position: Position, account: Account
    ) -> None:
        tensors = {f"objective/{k}": v for k, v in objective.state_dict().items()}
        tensors |= {f"sums/{name}": value for name, value in position.sums.items()}
        if self.selection:
            tensors |= {f"best/{name}": value for name, value in self.selection.weights.items()}
        plain: dict[str, dict[str, Any]] = {}
        for index, state in optimizer.state_dict()["state"].items():
            for name, value in state.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer/{index}/{name}"] = value
                else:
                    plain.setdefault(str(index), {})[name] = value
        place = {**vars(position), "sums": list(position.sums)}
        try:
            text = json.dumps({"position": place, "account": asdict(account), "optimizer": plain})
            save = {name: value.detach() for name, value in tensors.items()}
        except (TypeError, AttributeError) as err:  # somebody's own optimizer or extra state
            self.every = math.inf
            self.states.store.tell(f"this stage cannot be saved before its end: its state is not plain ({err})")
            return
        with self.states.saving(self.states.last + 1) as work:
            save_tensors(save, work / "state.safetensors")
            (work / "state.json").write_text(text)

    def restore(self, objective: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Position, Account] | None:
        """Bring a stage back to where it was saved; None where there is nothing whole and fitting to go on from.

        However many processes saved it, any number can go on: the first one reads, for all.
        """
        restored, state = processes.from_first(lambda: (self._read(objective, optimizer), optimizer.state_dict()))
        if restored and not processes.first():
            optimizer.load_state_dict(state)
            position, account = restored
            position.sums = {name: value.to(_device(objective)) for name, value in position.sums.items()}
            account.cpu_seconds = 0.0  # the first process's account counts them
        return restored

    def _read(self, objective: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Position, Account] | None:
        folder = self.states.newest()
        if folder is None:
            return None
        try:
            said = json.loads((folder / "state.json").read_text())
            tensors = load_file(folder / "state.safetensors", device=str(_device(objective)))
            own = objective.state_dict()
            found = _under("objective/", tensors)
            if found.keys() != own.keys() or any(found[k].shape != v.shape for k, v in own.items()):
                raise ValueError("another objective")
            account = Account(**said["account"])
            sums = _under("sums/", tensors)
            position = Position(**{**said["position"], "sums": {name: sums[name] for name in said["position"]["sums"]}})
            kept = _optimizer_state(optimizer, _under("optimizer/", tensors), said["optimizer"])
        except (OSError, ValueError, KeyError, IndexError, TypeError, SafetensorError):
            self.states.set_aside(folder)
            return None
        if self.selection:
            self.selection.recall(position.lines, {k: v.cpu() for k, v in _under("best/", tensors).items()})
        objective.load_state_dict(found)
        optimizer.load_state_dict(kept)
        return position, account

    # --- a stage that produces an array ---------------------------------------------------------

    def save_part(self, begin: int, pieces: Sequence[Array], account: Account) -> Array:
        """Write the entries from image `begin` on, beside those already written; return them as they lie on disk.

        Raises as `save`.
        """

        def write() -> None:
            with self.states.saving(begin, keep=True) as work:
                save_rows(pieces, work / "array.npy")
                (work / "state.json").write_text(json.dumps(asdict(account)))

        with self._timed():
            processes.from_first(write)
        return self._part(begin)

    def _part(self, begin: int) -> Array:
        """Map a part that is whole."""
        folder = self.states.store.folder(self.states.kind, f"{begin:08d}")
        part: Array = np.load(folder / "array.npy", mmap_mode="r", allow_pickle=False)
        return part

    def restore_parts(self) -> tuple[list[Array], Account | None]:
        """Return the parts that follow each other without a hole, and the account when the last was written."""
        begins, account = processes.from_first(self._whole_parts)
        if account and not processes.first():
            account.cpu_seconds = 0.0
        return [self._part(begin) for begin in begins], account

    def _whole_parts(self) -> tuple[list[int], Account | None]:
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
    """Lay stored values into a fresh optimizer's state dict, in the memory layout of each parameter.

    Fused kernels walk parameter and state side by side, so that another layout would pair the wrong values.
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


def evaluated(states: Unfinished) -> tuple[list[str], Curves, float]:
    """Return the chunks of an evaluation that are done, how they went, and the seconds they took."""
    folder = states.newest()
    if folder is None:
        return [], {}, 0.0
    said = json.loads((folder / "bits.json").read_text())
    return said["bits"], said["curves"], said["seconds"]


def save_evaluated(states: Unfinished, bits: list[str], curves: Curves, seconds: float) -> None:
    """Write the chunks of an evaluation that are done."""
    with states.saving(len(bits)) as work:
        (work / "bits.json").write_text(json.dumps({"bits": bits, "curves": curves, "seconds": seconds}))
