"""Quick PGD accuracy on training images, to check teachers before use and to select the best epoch.

It is not an evaluation: it runs one short attack, and never on test images.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robobench.core.losses import is_misclassified, is_near_chance
from robobench.core.module_state import attack_mode
from robobench.core.threat import ThreatModel
from robobench.training.context import ImageSource, TrainRuntime
from robobench.training.inner_maximization import pgd_ascent

EARLY_CHECK = 0.2  # fraction of training after which a model without any robustness is reported
STEPS, RELATIVE_STEP = 10, 0.25  # PGD-10 with a random start, as in Rice et al., ICML 2020


@dataclass(frozen=True, order=True)
class QuickAccuracy:
    """Fractions of `images` that are classified correctly under PGD and when clean. Ordered by PGD first."""

    pgd: float
    clean: float
    images: int

    def __str__(self) -> str:
        return f"clean {100 * self.clean:.1f} %, PGD-{STEPS} {100 * self.pgd:.1f} % of {self.images} images"

    @property
    def not_robust(self) -> bool:
        """Whether PGD accuracy is less than a quarter of clean accuracy."""
        return self.pgd < self.clean / 4

    def near_chance(self, num_classes: int) -> bool:
        """Whether clean accuracy is not clearly above guessing."""
        return is_near_chance(self.clean, self.images, 1 / num_classes)


def quick_accuracy(
    runtime: TrainRuntime,
    model: nn.Module,
    data: ImageSource,
    threat: ThreatModel,
    count: int,
    batch_size: int = 128,
) -> QuickAccuracy:
    """Measure a model on the first `count` images of `data`, in the batches and precision of training.

    Of several threat models, an image has to survive the attack of each.
    """
    clean, robust = 0, 0
    index = torch.arange(min(count, len(data)))
    for part in torch.split(index, batch_size):
        batch = runtime.batch(data, part, "probe", 0)
        with attack_mode(model), runtime.autocast():
            correct = _is_correct(model, batch.images, batch.labels)
            images, labels = batch.images[correct], batch.labels[correct]
            clean += len(labels)
            rng = batch.rng[correct]
            for one in threat.members if threat.eps else ():
                if len(labels):

                    def objective(adv: Tensor, labels: Tensor = labels) -> Tensor:
                        return F.cross_entropy(model(adv).float(), labels, reduction="none")

                    start = one.random_start(images, rng)
                    adv = pgd_ascent(objective, start, images, one, STEPS, RELATIVE_STEP * one.eps)
                    survived = _is_correct(model, adv, labels)
                    images, labels, rng = images[survived], labels[survived], rng[survived]
            robust += len(labels)
    return QuickAccuracy(robust / len(index), clean / len(index), len(index))


def _is_correct(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        return ~is_misclassified(model(images), labels)


class EpochSelection:
    """Keeps a model's weights of the epoch with the best PGD accuracy on held-out training images.

    It measures after each epoch of the second half of training, since no published run peaks earlier. The time is not
    counted. On a tie the earlier epoch is kept.

    Args:
        model: called for the model after each epoch: the live one, or the one with averaged weights.
        prefix: of the names in the log.
    """

    def __init__(
        self,
        runtime: TrainRuntime,
        model: Callable[[], nn.Module],
        held_out: ImageSource,
        threat: ThreatModel,
        epochs: int,
        prefix: str = "held_out",
    ) -> None:
        self.runtime, self.model, self.held_out, self.threat = runtime, model, held_out, threat
        self.epochs, self.prefix = epochs, prefix
        self.results: dict[int, QuickAccuracy] = {}
        self.weights: dict[str, Tensor] = {}

    def validate(self, epoch: int, last: bool = False) -> dict[str, float]:
        """Measure the model after an epoch (counted from 0), always after the last; return metrics for the log."""
        if epoch < self.epochs // 2 and not last:
            return self._early_check(epoch)
        model = self.model()
        now = quick_accuracy(self.runtime, model, self.held_out, self.threat, len(self.held_out))
        if not self.results or now > max(self.results.values()):
            self.weights = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
        self.results[epoch] = now
        return {f"{self.prefix}_clean": now.clean, f"{self.prefix}_pgd": now.pgd}

    def _early_check(self, epoch: int) -> dict[str, float]:
        """Measure the live model once, after a fifth of training, and warn if no image is classified robustly."""
        if epoch + 1 != math.ceil(EARLY_CHECK * self.epochs) or not self.threat.eps or self.prefix != "held_out":
            return {}
        now = quick_accuracy(self.runtime, self.model(), self.held_out, self.threat, len(self.held_out))
        if now.pgd == 0:
            self.runtime.reporter.warning(
                f"after epoch {epoch + 1} of {self.epochs} the model is not robust at all: {now}; if this is "
                "fine-tuning it seldom recovers: lower lr, grow the radius (eps_rampup), or start from robust weights"
            )
        return {"early_clean": now.clean, "early_pgd": now.pgd}

    def restore(self, epoch_metrics: list[dict[str, float]], weights: dict[str, Tensor]) -> None:
        """Resume from a checkpoint: metrics of finished epochs, and the best weights so far."""
        self.weights = weights
        clean, pgd = f"{self.prefix}_clean", f"{self.prefix}_pgd"
        self.results = {
            epoch: QuickAccuracy(metrics[pgd], metrics[clean], len(self.held_out))
            for epoch, metrics in enumerate(epoch_metrics)
            if pgd in metrics
        }

    def record(self) -> dict[str, float]:
        """Return what was selected: the best epoch (from 1), its PGD accuracy and that of the last epoch."""
        best = max(self.results.values())
        epoch = min(e for e, value in self.results.items() if value == best)
        last = self.results[max(self.results)]
        return {"epoch": epoch + 1, "best_pgd": best.pgd, "last_pgd": last.pgd, "images": best.images}
