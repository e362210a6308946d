"""Score submitted adversarial images on a model: ball, box and success of each image."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robobench.attack_engine.randomized import predicts_wrong
from robobench.core.module_state import attack_mode
from robobench.core.rng import KeyedRng
from robobench.core.threat import ThreatModel
from robobench.errors import RequestError
from robobench.evaluation.accuracy import batch_indices, seeded_torch
from robobench.evaluation.tensors import TensorImages
from robobench.results.statistics import wilson_interval


@dataclass(frozen=True)
class Score:
    """Submitted images on a model. An image outside the ball or the box is no attack: it changes no outcome.

    Attributes:
        threat: the ball.
        clean: (N,) bool, correct when clean.
        success: (N,) bool, the submitted image lies in the ball and in [0, 1], and is misclassified.
        distances: (N,) float64, between submitted and clean images; NaN if an image is not finite.
        reasons: why each image does not count, "" where it does.
        notes: how model and data were read, and whether the file has fewer images than the data.
    """

    threat: ThreatModel
    clean: Tensor
    success: Tensor
    distances: Tensor
    reasons: tuple[str, ...]
    notes: tuple[str, ...] = ()  # on the model, the data and the file

    @property
    def robust(self) -> Tensor:
        """(N,) bool, correct when clean and no success."""
        return self.clean & ~self.success

    @property
    def robust_accuracy(self) -> float:
        """Fraction of all images: an upper bound, which these images show."""
        return float(self.robust.double().mean())

    def as_dict(self) -> dict[str, Any]:
        """Return the score as plain values; accuracies are fractions."""
        count = len(self.clean)
        low, high = wilson_interval(int(self.robust.sum()), count)
        return {
            "norm": self.threat.norm,
            "eps": self.threat.eps,
            "images": count,
            "clean_accuracy": float(self.clean.double().mean()),
            "robust_accuracy": self.robust_accuracy,
            "ci_low": low,
            "ci_high": high,
            "successes": int((self.clean & self.success).sum()),
            "largest_distance": float(self.distances.nan_to_num().max()),
            "refused": dict(Counter(reason for reason in self.reasons if reason)),
            "robust": self.robust.tolist(),
        }


def score_images(model: nn.Module, adv: Tensor, data: TensorImages, threat: ThreatModel, batch_size: int) -> Score:
    """Score submitted images; none is projected or clipped.

    Args:
        adv: (N, C, H, W), as submitted.
        data: the clean images, at least N; the first N are used.

    Raises:
        RequestError: more images than test images, or another shape.
    """
    shape = tuple(data.images(torch.arange(1)).shape[1:])
    if len(adv) == 0 or len(adv) > len(data) or tuple(adv.shape[1:]) != shape:
        raise RequestError(
            f"the submitted images have shape {tuple(adv.shape)}, the test images {(len(data), *shape)}; submit one "
            "image for each test image, in their order"
        )
    parts: list[tuple[Tensor, ...]] = []
    reasons: list[str] = []
    for index in batch_indices(len(adv), batch_size):
        images, labels = data.images(index), data.labels[index].to(data.device)
        given = adv[index].to(images)
        why, distance = _examine(given, images, threat)
        valid = torch.tensor([not reason for reason in why], device=images.device)
        with attack_mode(model), torch.no_grad(), seeded_torch(KeyedRng.of(index, "score"), data.device):
            clean = ~predicts_wrong(model, images, labels)
            success = predicts_wrong(model, torch.where(valid[:, None, None, None], given, images), labels) & valid
        parts.append((clean.cpu(), success.cpu(), distance.cpu()))
        reasons += why
    clean, success, distances = (torch.cat(part) for part in zip(*parts, strict=True))
    return Score(threat, clean, success, distances, tuple(reasons))


def _examine(adv: Tensor, images: Tensor, threat: ThreatModel) -> tuple[list[str], Tensor]:
    """Return why each image does not count ("" where it does), and its distance (B,) float64."""
    finite = torch.isfinite(adv).flatten(1).all(1)
    low, high = adv.flatten(1).amin(1), adv.flatten(1).amax(1)
    distance = threat.distance(adv.double(), images.double())
    outside = distance > threat.eps + threat.tolerance(images)
    faults = {"not finite": ~finite, "outside [0, 1]": (low < -1e-6) | (high > 1 + 1e-6), f"outside {threat}": outside}
    reasons = [next((why for why, bad in faults.items() if bool(bad[row])), "") for row in range(len(adv))]
    return reasons, torch.where(finite, distance, torch.nan)
