"""Class labels whose cross-entropy has a smoothed or mixed target. A method uses them like plain labels."""

from __future__ import annotations

import contextvars
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_in_attack = contextvars.ContextVar("in_attack", default=False)


@contextmanager
def attack_loss() -> Iterator[None]:
    """Mark the loss computed in the block as that of an attack, whose labels are smoothed only if asked for."""
    token = _in_attack.set(True)
    try:
        yield
    finally:
        _in_attack.reset(token)


class SoftLabels(Tensor):
    """Labels (B,) int64 with the targets that `F.cross_entropy` shall use for them.

    The target of an image is `share` times its label plus 1 - `share` times the label `other`, smoothed: (1 - s) times
    this, plus s / K for each of K classes. Smoothing acts on logits that are trained, not on those of a teacher.

    All other functions see the plain labels. With `other` they raise ValueError, since an image has no single label.
    """

    smoothing: float
    smooth_attack: bool
    other: Tensor | None
    share: Tensor | None

    @classmethod
    def of(
        cls,
        labels: Tensor,
        smoothing: float = 0.0,
        *,
        smooth_attack: bool = False,
        other: Tensor | None = None,
        share: Tensor | None = None,
    ) -> SoftLabels:
        """Return labels (B,) int64 with their smoothing s, and for mixed images `other` (B,) int64 and `share` (B,)."""
        soft = labels.as_subclass(cls)
        soft.smoothing, soft.smooth_attack, soft.other, soft.share = smoothing, smooth_attack, other, share
        return soft

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.cross_entropy:
            return _cross_entropy(*args, **kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **kwargs)
        if not isinstance(result, Tensor):
            return result
        soft = next(a for a in (*args, *kwargs.values(), *_flat(args)) if isinstance(a, SoftLabels))
        if func is Tensor.__getitem__ and soft is args[0]:
            other, share = (None if part is None else part[args[1]] for part in (soft.other, soft.share))
            return cls.of(result, soft.smoothing, smooth_attack=soft.smooth_attack, other=other, share=share)
        if soft.other is not None:
            raise ValueError(
                f"mixed images have two labels, and this method uses the label itself (in '{func.__name__}'), not only "
                "its cross-entropy; set mixup and cutmix to 0"
            )
        if result.dtype == torch.int64:  # labels still, such as repeated ones
            return cls.of(result, soft.smoothing, smooth_attack=soft.smooth_attack)
        return result


def _flat(values: Any) -> Iterator[Any]:
    """Iterate over the entries of lists and tuples among `values`, as in torch.cat."""
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from value


def _cross_entropy(
    logits: Tensor,
    labels: SoftLabels,
    *,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    **kwargs: Any,
) -> Tensor:
    """Compute F.cross_entropy of logits (B, K) against soft labels. A smoothing that the method gives is kept."""
    trained = logits.requires_grad and (labels.smooth_attack or not _in_attack.get())
    options: dict[str, Any] = {"label_smoothing": label_smoothing or (labels.smoothing if trained else 0.0), **kwargs}
    with torch._C.DisableTorchFunctionSubclass():
        plain = labels.as_subclass(Tensor)
        if labels.other is None:
            return F.cross_entropy(logits, plain, reduction=reduction, **options)
        first, second = (F.cross_entropy(logits, t, reduction="none", **options) for t in (plain, labels.other))
        losses = torch.lerp(second, first, labels.share.to(first.dtype))  # type: ignore[union-attr]
        return losses if reduction == "none" else losses.mean() if reduction == "mean" else losses.sum()
