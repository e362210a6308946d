"""Distances to the closest adversarial examples, and the accuracy at every radius that follows from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from robobench.attack_engine.base import Attack
from robobench.core.losses import is_misclassified
from robobench.core.module_state import attack_mode
from robobench.core.threat import ThreatModel
from robobench.errors import RequestError
from robobench.evaluation.accuracy import attack_rng, batch_indices
from robobench.evaluation.tensors import TensorImages
from robobench.results.statistics import wilson_interval

if TYPE_CHECKING:
    import pandas as pd

CURVE_POINTS = 21  # radii of a curve by default


@dataclass(frozen=True)
class Distances:
    """Distances to the closest adversarial examples that a minimum-norm attack found: upper bounds.

    Attributes:
        attack, norm: name of the attack, and the norm of the distances.
        values: (N,) float64, on the [0, 1] scale, in L0 the number of changed values; 0 where the clean image is
            misclassified, infinity where no adversarial example was found.
        adversarial: (N, C, H, W), the closest adversarial examples; the clean image where there is none.
    """

    attack: str
    norm: str
    values: Tensor
    adversarial: Tensor

    @property
    def median(self) -> float:
        """Median distance over all images."""
        return float(self.values.quantile(0.5, interpolation="higher"))

    def curve(self, radii: Sequence[float] | None = None) -> pd.DataFrame:
        """Return robust accuracy at each radius, with its 95 % Wilson interval.

        An image counts as robust at a radius if its distance is larger. All radii come from one run, so the accuracies
        cannot rise with the radius.

        Args:
            radii: default: 21 from 0 to the largest finite distance, in L0 the whole numbers above them.

        Returns:
            Columns attack, norm, eps, robust_accuracy, ci_low, ci_high; accuracies are fractions.
        """
        import pandas as pd

        finite = self.values[self.values.isfinite()]
        if radii is None:
            steps = torch.linspace(0, float(finite.max()) if len(finite) else 1.0, CURVE_POINTS)
            radii = sorted(set(steps.ceil().tolist())) if self.norm == "L0" else steps.tolist()
        rows = []
        for eps in radii:
            count = int((self.values > eps).sum())
            low, high = wilson_interval(count, len(self.values))
            rows.append((self.attack, self.norm, eps, count / len(self.values), low, high))
        return pd.DataFrame(rows, columns=["attack", "norm", "eps", "robust_accuracy", "ci_low", "ci_high"])


def widest(norm: str, images: Tensor) -> ThreatModel:
    """Return the threat model of a ball that contains all images of a shape."""
    count = images[0].numel()
    return ThreatModel(norm, {"Linf": 1.0, "L2": math.sqrt(count), "L1": float(count), "L0": float(count)}[norm])


def find_distances(model: nn.Module, attack: Attack, data: TensorImages, batch_size: int) -> Distances:
    """Run a minimum-norm attack with its full budget on every image that is classified correctly.

    Args:
        attack: its threat model contains all images, as that of `widest`.

    Raises:
        RequestError: the attack does not look for the closest adversarial example.
    """
    if not attack.finds_closest:
        raise RequestError(f"attack '{attack.name}' finds no distances; use fmn or another minimum-norm attack")
    values, parts = [], []
    for index in batch_indices(len(data), batch_size):
        images, labels = data.images(index), data.labels[index].to(data.device)
        adv, distance = images.clone(), torch.zeros(len(index), dtype=torch.float64, device=data.device)
        with attack_mode(model), torch.no_grad():
            rows = (~is_misclassified(model(images), labels)).nonzero().flatten()
            if len(rows):
                rng = attack_rng(attack, index.to(data.device)[rows], str(data.device))
                found = attack.attack_full_budget(model, images[rows], labels[rows], rng).detach()
                attack.threat.check(found, images[rows], f"attack '{attack.name}'")
                success = is_misclassified(model(found), labels[rows])
                far = attack.threat.distance(found.double(), images[rows].double())
                distance[rows] = torch.where(success, far, math.inf)
                adv[rows[success]] = found[success]
        values.append(distance.cpu())
        parts.append(adv.to(data.labels.device))
    return Distances(attack.name, attack.threat.norm, torch.cat(values), torch.cat(parts))
