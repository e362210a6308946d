"""Several transfer sources as one model: the mean of their logits (Dong et al. 2018, arXiv:1710.06081, section 3.3).

Liu et al. 2017 (arXiv:1611.02770) introduced ensembles of sources, with the mean of the probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from robobench.core.module_state import attack_mode
from robobench.errors import RequestError, one_line
from robobench.evaluation.tensors import as_module

Model = Callable[[Tensor], Tensor]


class LogitMean(nn.Module):
    """The mean of the logits of several models: (B, C, H, W) -> (B, K).

    Args:
        names: of the models, for messages.

    Raises:
        RequestError: a model gives logits of another shape than the first one.
    """

    def __init__(self, models: Sequence[nn.Module], names: Sequence[str]) -> None:
        super().__init__()
        self.models, self.names = nn.ModuleList(models), list(names)

    def forward(self, images: Tensor) -> Tensor:
        logits: list[Tensor] = [model(images) for model in self.models]
        for name, other in zip(self.names, logits, strict=True):
            if other.shape != logits[0].shape:
                raise RequestError(
                    f"transfer source {name} gives logits of shape {tuple(other.shape)}, {self.names[0]} of "
                    f"{tuple(logits[0].shape)}; give sources of the same classes"
                )
        return torch.stack(logits).mean(0)


def as_source(given: Model | Sequence[Model], images: Tensor) -> nn.Module:
    """Return one source as a module, or several as their `LogitMean`, tried on two images.

    Raises:
        RequestError: there is no source, or one of several fails on images (N, C, H, W) or has other classes.
    """
    models = [as_module(model) for model in (given if isinstance(given, (list, tuple)) else [cast(Model, given)])]
    if not models:
        raise RequestError("transfer_source is empty; give one model or several, or leave it out")
    if len(models) == 1:
        return models[0]
    names = [f"{number} ({type(model).__name__})" for number, model in enumerate(models, 1)]
    mean = LogitMean(models, names)
    with torch.no_grad(), attack_mode(mean):
        for name, model in zip(names, models, strict=True):
            try:
                model(images[:2])
            except Exception as err:
                size = tuple(images.shape[1:])
                raise RequestError(f"transfer source {name} fails on images of shape {size}: {one_line(err)}") from err
        mean(images[:2])
    return mean
