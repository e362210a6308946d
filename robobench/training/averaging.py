"""Average of a model's weights over training: exponential moving average (EMA) or stochastic weight averaging (SWA).

Sources: Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", UAI 2018 (SWA); Gowal et
al., arXiv:2010.03593, and Wang et al., "Better Diffusion Models Further Improve Adversarial Training", ICML 2023 (EMA
in adversarial training, with its warm-up). The gradient steps and inner attacks use the live weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn, update_bn

from robobench.training.config import TrainServices

DECAY_IMAGES = 128  # number of training images that `average_decay` belongs to


class WeightAverage:
    """The averaged copy of a model.

    Args:
        model: the live model.
        services: settings, with `average` "ema" or "swa".
        epochs: of the stage that trains the model.
    """

    def __init__(self, model: nn.Module, services: TrainServices, epochs: int) -> None:
        self.model, self.services, self.epochs = model, services, epochs
        buffers = services.average_batchnorm == "average"
        self.averaged = AveragedModel(model, multi_avg_fn=self._average, use_buffers=buffers)
        self.decay = 0.0  # of the next update
        if services.average == "ema":
            self.averaged.update_parameters(model)  # the initial weights are part of the average

    @property
    def module(self) -> nn.Module:
        """The model with averaged weights; the live model as long as nothing was averaged."""
        return self.averaged.module if int(self.averaged.n_averaged) else self.model

    def _average(self, averaged: Iterable[Tensor], live: Iterable[Tensor], count: Tensor | int) -> None:
        make: Any = (
            partial(get_ema_multi_avg_fn, self.decay) if self.services.average == "ema" else get_swa_multi_avg_fn
        )
        make()(averaged, live, count)

    def after_step(self, step: int, steps_per_epoch: int, images: int) -> None:
        """Update an EMA after optimizer step `step` of the stage, counted from 1, on `images` images of all devices.

        The decay is 0 until `average_start`, then min(decay, (1 + t) / (10 + t)) after t more steps.
        """
        if self.services.average == "ema":
            since = step - self.services.average_start * self.epochs * steps_per_epoch
            decay = self.services.average_decay ** (images / DECAY_IMAGES)
            self.decay = min(decay, (1 + since) / (10 + since)) if since >= 0 else 0.0
            self.averaged.update_parameters(self.model)

    def after_epoch(self, epoch: int, batches: Iterable[Tensor]) -> None:
        """Update an SWA after an epoch, counted from 0, and recompute BatchNorm's statistics if so configured.

        Args:
            batches: clean training images, read only if they are needed.
        """
        if self.services.average == "swa" and epoch + 1 > self.services.average_start * self.epochs:
            self.averaged.update_parameters(self.model)
        if self.services.average_batchnorm == "recompute" and self.module is not self.model:
            update_bn(batches, self.averaged.module)
