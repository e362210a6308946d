"""Warn about models that classify clean images no better than guessing: their robust accuracy means nothing."""

from __future__ import annotations

from torch import Tensor

from robobench.core.losses import is_near_chance

CAUSES = (
    "the order of its classes, its normalization (--mean and --std, or inside the model), the size of its images "
    "(--image-size)"
)


def near_chance_warning(name: str, accuracy: float, labels: Tensor, num_classes: int, trained: bool) -> str | None:
    """Return a warning if clean accuracy is not clearly above guessing the most frequent class; else None.

    Args:
        name: of the model.
        accuracy: fraction of the clean images that it classifies correctly.
        labels: (N,) int64, of these images.
        trained: robobench trained the model.
    """
    count = len(labels)
    if count == 0:
        return None
    chance = max(1 / num_classes, int(labels.bincount().max()) / count)
    if accuracy == 1 or not is_near_chance(accuracy, count, chance):
        return None
    last = "its learning rate, and train it for more epochs" if trained else "and whether these are the right weights"
    return (
        f"{name} classifies {100 * accuracy:.1f} % of {count} clean images correctly, not clearly more than guessing "
        f"({100 * chance:.1f} %), so its robust accuracy means little; check {CAUSES}, {last}"
    )
