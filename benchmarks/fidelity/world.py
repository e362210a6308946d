"""What the published code is given: models, batches and random numbers, and stand-ins for parts of the scripts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

CLASSES = 10


@dataclass
class World:
    """What the published code is given.

    Attributes:
        folder: holds the fetched repositories, each in OWNER+NAME.
        batches: (images, labels) of the five steps, float64.
        begin: called with the number of a step before it.
        epoch: counted from 1.
    """

    folder: Path
    student: nn.Module
    teachers: Mapping[str, nn.Module]
    optimizer: torch.optim.Optimizer
    batches: list[tuple[Tensor, Tensor]]
    begin: Callable[[int], None]
    eps: float
    step: float
    inner_steps: int
    config: Any
    epoch: int
    objective: Any = None  # ours, for values that are drawn at its construction
    replay: Any = None  # our draws
    rngs: Any = ()  # random numbers of the batches

    def loader(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches, and go to their draws."""
        for number, batch in enumerate(self.batches):
            self.begin(number)
            yield batch

    def minimize(self, loss: Callable[[Tensor, Tensor], Any]) -> None:
        """Take the steps on a published loss function, as the scripts around them do."""
        self.student.train()
        for images, labels in self.loader():
            value = loss(images, labels)
            self.optimizer.zero_grad()
            value.backward()
            self.optimizer.step()

    @property
    def attack(self) -> dict[str, Any]:
        """Keyword arguments of the attack in most loss functions."""
        return {"step_size": self.step, "epsilon": self.eps, "perturb_steps": self.inner_steps}


class Sized:
    """An iterator with a length, which only the learning rate of the script needs."""

    def __init__(self, items: Any) -> None:
        self.items = items

    def __iter__(self) -> Any:
        return iter(self.items)

    def __len__(self) -> int:
        return 1


class Meter:
    """Stands for the script's meters and progress bar."""

    avg = val = 0.0
    elapsed_td = eta_td = suffix = ""

    def update(self, *_: Any) -> None: ...

    def next(self) -> None: ...


class ProgressBar:
    """A loader with tqdm's method."""

    def __init__(self, items: Any) -> None:
        self.items = items

    def __iter__(self) -> Any:
        return iter(self.items)

    def set_description(self, *_: Any) -> None: ...


def per_channel(value: float) -> Tensor:
    return torch.full((3, 1, 1), value)


def clamp(x: Tensor, low: Any, high: Any) -> Tensor:
    return torch.max(torch.min(x, torch.as_tensor(high)), torch.as_tensor(low))
