"""A loss of the user's own in place of an attack's: `--set pgd.loss=FILE.py:FUNCTION`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import cast

from torch import Tensor

from robobench.core.imports import import_file
from robobench.core.losses import is_misclassified
from robobench.errors import GradientError, RequestError, one_line

LossFunction = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class OwnLossConfig:
    """Setting of an attack whose loss may be replaced.

    The function maps logits (B, K) and labels (B,) to (B,), one loss per image, which the attack increases.
    """

    loss: str = ""  # FILE.py:FUNCTION; empty: the attack's own
    loss_digest: str = field(default="", init=False)  # SHA-256 of the file; part of the result's key

    def __post_init__(self) -> None:
        if self.loss:
            digest = hashlib.sha256(_file_of(self.loss).read_bytes()).hexdigest()[:16]
            object.__setattr__(self, "loss_digest", digest)
            _import_loss(self.loss, digest)

    def own_loss(self, default: LossFunction) -> LossFunction:
        """Return the user's loss, or `default` if there is none."""
        if not self.loss:
            return default
        function = _import_loss(self.loss, self.loss_digest)

        def loss(logits: Tensor, labels: Tensor) -> Tensor:
            losses = function(logits, labels)
            if not isinstance(losses, Tensor) or losses.shape != labels.shape:
                got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
                raise RequestError(
                    f"loss '{self.loss}' must return one value per image, {tuple(labels.shape)}, got {got}"
                )
            correct = ~is_misclassified(logits.detach(), labels)
            if logits.requires_grad and bool(correct.any()):
                logits.register_hook(lambda grad: self._check(grad[correct]))  # type: ignore[no-untyped-call]
            return losses

        return loss

    def _check(self, grad: Tensor) -> None:
        """Raise GradientError if the gradient (B, K) is zero everywhere: the attack could not move."""
        if not bool(grad.any()):
            raise GradientError(
                f"loss '{self.loss}' has a gradient of 0 at all {len(grad)} images of a batch that are classified "
                "correctly, so the attack cannot move; return a loss that grows with the wrong logits"
            )


def _file_of(text: str) -> Path:
    source, _, function = text.rpartition(":")
    if not source.endswith(".py") or not Path(source).is_file() or not function:
        raise ValueError(f"no loss at '{text}'; write FILE.py:FUNCTION, a function of logits and labels")
    return Path(source)


@cache
def _import_loss(text: str, digest: str) -> LossFunction:
    file, function = _file_of(text), text.rpartition(":")[2]
    try:
        found = getattr(import_file(f"robobench_loss_{digest}", file), function, None)
    except Exception as err:
        raise ValueError(f"loss '{text}' fails to import: {one_line(err)}") from err
    if not callable(found):
        raise ValueError(f"'{file}' has no function '{function}'")
    return cast(LossFunction, found)
