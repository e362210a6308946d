"""Model specs that several test files use."""

from __future__ import annotations

from robobench.models.spec import ModelSpec

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def cnn_spec(**changes) -> ModelSpec:
    """The smallest model for 5 classes at 32 px, with normalization."""
    return ModelSpec(**{"name": "cnn", "num_classes": 5, "image_size": 32, "mean": MEAN, "std": STD, **changes})
