"""The static attack: every training image attacked once, on the standard model (section 4.1, G17)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from robobench.api import Batch, DefenseSetup, FrozenModel, PassCounts, Precompute, ThreatModel, pgd_ascent

from .config import MACDConfig

LEAST_BATCH = 64  # measured on wrn50 at 32 px, two CPU cores: 179 images a second and step, 153 in batches of 32


def stage(setup: DefenseSetup, config: MACDConfig) -> Precompute:
    """Attack the training set; the passes are the standard model's."""
    return Precompute(
        name="static-attack",
        function=static_attack(setup.required_models["standard"], setup.threat, config, setup.is_uint8_exact),
        batch_size=max(config.batch_size, LEAST_BATCH),
        passes=PassCounts(teacher_forward=config.static_steps, teacher_input_grad=config.static_steps),
        config_fields=("static_steps", "static_relative_step", "batch_size"),
    )


def static_attack(
    standard: FrozenModel, threat: ThreatModel, config: MACDConfig, on_grid: bool
) -> Callable[[Batch], Tensor]:
    """Return the function that attacks a batch: PGD with the true labels and a start anywhere in the ball.

    Every image, right or wrong on the standard model, gets all steps; the last iterate is kept. The result is
    uint8 where that loses nothing: an Linf radius of whole 255ths around images of whole 255ths.
    """
    radius = round(threat.eps * 255)
    whole = on_grid and threat.norm == "Linf" and abs(threat.eps * 255 - radius) < 1e-6

    def attack(batch: Batch) -> Tensor:
        images, labels = batch.images, batch.labels

        def objective(adv: Tensor) -> Tensor:
            return F.cross_entropy(standard(adv), labels, reduction="none")

        step_size = config.static_relative_step * threat.eps
        start = threat.random_start(images, batch.rng.child("start"))
        adv = pgd_ascent(objective, start, images, threat, config.static_steps, step_size)
        return to_grid(adv, images, radius) if whole else adv

    return attack


def to_grid(adv: Tensor, images: Tensor, radius: int) -> Tensor:
    """Round to uint8 and put the ball of `radius` 255ths back around each pixel."""
    clean = (images * 255).round()
    return (adv * 255).round().clamp(clean - radius, clean + radius).clamp(0, 255).to(torch.uint8)
