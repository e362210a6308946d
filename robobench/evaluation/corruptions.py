"""Accuracy under common corruptions: no adversary and no radius, the same images under every kind and severity."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robobench.data.corruptions import CorruptedSplit
from robobench.errors import RequestError
from robobench.evaluation.accuracy import batch_indices, clean_outcomes

Z = 1.959964  # of a 95 % interval


@dataclass(frozen=True)
class CorruptionAccuracy:
    """Which images are classified correctly under each corruption.

    Attributes:
        outcomes: (kind, severity) -> (N,) bool; position i is the same image everywhere.
    """

    outcomes: dict[tuple[str, int], Tensor]

    @property
    def kinds(self) -> list[str]:
        """Kinds in their order."""
        return list(dict.fromkeys(kind for kind, _ in self.outcomes))

    @property
    def accuracy(self) -> float:
        """Mean over kinds, severities and images, a fraction."""
        return float(self._all().mean())

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the mean, clustered by image."""
        return clustered_interval(self._all())

    def mean_of(self, kind: str | None = None, severity: int | None = None) -> float:
        """Mean accuracy of a kind over its severities, or of a severity over the kinds."""
        chosen = [o for (k, s), o in self.outcomes.items() if kind in (None, k) and severity in (None, s)]
        return float(torch.stack(chosen).double().mean())

    @property
    def examples(self) -> int:
        """Number of images."""
        return len(next(iter(self.outcomes.values())))

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; accuracies are fractions."""
        cells = {f"{kind} {severity}": float(o.double().mean()) for (kind, severity), o in self.outcomes.items()}
        return {
            "accuracy": self.accuracy,
            "interval": list(self.interval),
            "examples": self.examples,
            "kinds": {kind: self.mean_of(kind) for kind in self.kinds},
            "cells": cells,
        }

    def _all(self) -> Tensor:
        return torch.stack(list(self.outcomes.values()), 1).double()


def clustered_interval(outcomes: Tensor) -> tuple[float, float]:
    """Return the 95 % interval of a mean over images that were each evaluated several times.

    The outcomes of one image under 75 corruptions are not independent: the images are. The standard error is that of
    the mean over images of each image's own mean.

    Args:
        outcomes: (N, M), M outcomes of each of N images; NaN is returned if N is 1.

    Source: Liang and Zeger, Biometrika 73, 1986, for clusters of equal size, with N - 1 in place of N.
    """
    each = outcomes.double().mean(1)
    if len(each) < 2:
        return math.nan, math.nan
    mean, half = float(each.mean()), Z * float(each.std()) / math.sqrt(len(each))
    return max(0.0, mean - half), min(1.0, mean + half)


def evaluate_corruptions(
    model: nn.Module,
    parts: Iterable[CorruptedSplit],
    *,
    examples: int | None = None,
    batch_size: int = 256,
    device: str = "cpu",
) -> CorruptionAccuracy:
    """Classify the images of every kind and severity.

    Args:
        model: images (B, C, H, W) in [0, 1] -> logits (B, K).
        examples: number of images, from the first on, the same under every corruption.

    Raises:
        RequestError: the parts hold other images, or the model fails.
    """
    outcomes: dict[tuple[str, int], Tensor] = {}
    first: Tensor | None = None
    for part in parts:
        labels = part.images.labels.cpu()
        first = labels if first is None else first
        if not torch.equal(labels, first):
            raise RequestError(
                f"{part.kind}, severity {part.severity}, holds other images than the first corruption: {len(labels)} "
                f"and {len(first)}, or other labels; all must hold the same images in one order"
            )
        batches = batch_indices(min(examples or len(labels), len(labels)), batch_size)
        correct = [clean_outcomes(model, part.images, index, device) for index in batches]
        outcomes[part.kind, part.severity] = torch.cat(correct)
    return CorruptionAccuracy(outcomes)
