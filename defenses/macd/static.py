"""The static attack: each training image is attacked once, on the standard model (section 4.1, G17)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from robobench.api import Batch, DefenseSetup, FrozenModel, PassCounts, Precompute, ThreatModel, pgd_ascent

from .config import MACDConfig

MIN_BATCH_SIZE = 64  # wrn50 at 32 px on two CPU cores: 179 images per second and step; 153 with batches of 32


def stage(setup: DefenseSetup, config: MACDConfig) -> Precompute:
    """Return the stage that attacks the training set. Its passes are those of the standard model."""
    return Precompute(
        name="static-attack",
        function=static_attack(setup.required_models["standard"], setup.threat, config, setup.is_uint8_exact),
        batch_size=max(config.batch_size, MIN_BATCH_SIZE),
        passes=PassCounts(teacher_forward=config.static_steps, teacher_input_grad=config.static_steps),
        config_fields=("static_steps", "static_relative_step", "batch_size"),
    )


def static_attack(
    standard: FrozenModel, threat: ThreatModel, config: MACDConfig, is_uint8_exact: bool
) -> Callable[[Batch], Tensor]:
    """Return the function that attacks a batch with PGD from a random start in the ball.

    Every image gets all steps, also if the standard model misclassifies it, and the last iterate is kept. The result
    is uint8 where that is exact: for an Linf radius and images that are multiples of 1/255.
    """
    radius = round(threat.eps * 255)
    as_uint8 = is_uint8_exact and threat.norm == "Linf" and abs(threat.eps * 255 - radius) < 1e-6

    def attack(batch: Batch) -> Tensor:
        images, labels = batch.images, batch.labels

        def objective(adv: Tensor) -> Tensor:
            return F.cross_entropy(standard(adv), labels, reduction="none")

        step_size = config.static_relative_step * threat.eps
        start = threat.random_start(images, batch.rng.child("start"))
        adv = pgd_ascent(objective, start, images, threat, config.static_steps, step_size)
        return round_to_uint8(adv, images, radius) if as_uint8 else adv

    return attack


def round_to_uint8(adv: Tensor, images: Tensor, radius: int) -> Tensor:
    """Round to uint8 and project to the Linf ball of radius `radius` / 255."""
    clean = (images * 255).round()
    return (adv * 255).round().clamp(clean - radius, clean + radius).clamp(0, 255).to(torch.uint8)
