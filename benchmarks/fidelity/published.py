"""Run pieces of published training scripts as they are, on our network, batches and random numbers.

The scripts parse arguments and load data at import. Therefore single functions, classes and loops are taken from their
syntax trees and executed in a namespace that holds what the rest of the script would have defined.
"""

from __future__ import annotations

import ast
import contextlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robobench.core.rng import KeyedRng

Steps = list[list[Tensor]]  # draws of every step, in order


class Quiet:
    """Stands for progress bars and loggers: every attribute and call gives itself."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if args and isinstance(args[0], list) else self

    def __getattr__(self, name: str) -> Quiet:
        return self


def namespace(**values: Any) -> dict[str, Any]:
    """Return the imports that these scripts share, and the given values."""
    quiet = {name: Quiet() for name in ("progress_bar", "logger", "bar", "tqdm", "print")}
    amp = SimpleNamespace(scale_loss=lambda loss, _: contextlib.nullcontext(loss))
    modules = {"torch": torch, "nn": nn, "F": F, "np": np, "optim": torch.optim, "amp": amp, "device": "cpu"}
    return {**modules, "Variable": torch.autograd.Variable, **quiet, **values}


def run_definitions(file: Path, names: list[str], space: dict[str, Any]) -> dict[str, Any]:
    """Execute the top-level functions and classes of a file that have these names; return the namespace."""
    found: list[ast.stmt] = [node for node in parse(file).body if getattr(node, "name", None) in names]
    if len(found) != len(names):
        raise LookupError(f"{file} does not define all of {', '.join(names)}")
    exec(compile(ast.Module(found, []), str(file), "exec"), space)
    return space


def run_loop(file: Path, over: str, space: dict[str, Any]) -> dict[str, Any]:
    """Execute the first loop of a file over an iterable whose text contains `over`; return the namespace."""
    for node in ast.walk(parse(file)):
        if isinstance(node, ast.For) and over in ast.unparse(node.iter):
            exec(compile(ast.Module([node], []), str(file), "exec"), space)
            return space
    raise LookupError(f"{file} has no loop over {over}")


def parse(file: Path) -> ast.Module:
    """Parse a file; warnings about its escape sequences are not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(file.read_text())


class Replay:
    """Gives the draws of our run to torch's random functions, in order."""

    def __init__(self, steps: Steps) -> None:
        self.steps, self.queue, self.channel = steps, list[Tensor](), 0

    def begin(self, step: int) -> None:
        """Go to the draws of a step."""
        self.queue, self.channel = list(self.steps[step]), 0

    def normal(self, *shape: Any, **_: Any) -> Tensor:
        """Stand for torch.randn and torch.randn_like."""
        return self.queue.pop(0).clone()

    def uniform_(self, tensor: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Stand for Tensor.uniform_, of the whole batch or of one channel after another."""
        draw = self.queue[0]
        if tensor.shape != draw.shape:
            draw, self.channel = draw[:, self.channel], (self.channel + 1) % draw.shape[1]
        if not self.channel:
            self.queue.pop(0)
        return tensor.copy_(low + (high - low) * draw)


def as_float64(tensor: Tensor) -> Tensor:
    """Stand for Tensor.float."""
    return tensor if tensor.is_floating_point() else tensor.double()


@contextlib.contextmanager
def on_cpu_in_float64(replay: Replay) -> Iterator[None]:
    """Make published code run on the CPU in float64 and draw from `replay`."""
    same = lambda self, *args, **kwargs: self  # noqa: E731
    with contextlib.ExitStack() as stack:
        for owner, name, value in (
            (Tensor, "cuda", same), (Tensor, "float", as_float64), (nn.Module, "cuda", same),
            (torch.cuda, "synchronize", lambda: None),
            (torch, "randn", replay.normal), (torch, "randn_like", replay.normal),
            (Tensor, "uniform_", lambda tensor, *limits: replay.uniform_(tensor, *limits)),
        ):  # fmt: skip
            stack.enter_context(mock.patch.object(owner, name, value))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def record_draws(draws: list[Tensor]) -> Iterator[None]:
    """Make our random numbers float64, and keep them."""
    patches = []
    for name in ("normal", "uniform"):
        real = getattr(KeyedRng, name)

        def draw(rng: KeyedRng, *shape: int, real: Callable[..., Tensor] = real) -> Tensor:
            draws.append(real(rng, *shape).double())
            if shape == (1, 1, 1):  # published code draws them once per batch
                draws[-1] = draws[-1][:1].expand(len(draws[-1]), 1, 1, 1)
            return draws[-1]

        patches.append(mock.patch.object(KeyedRng, name, draw))
    with patches[0], patches[1]:
        yield
