"""Checks of a model: `features` and `head`, shape and finiteness of its logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from robobench.errors import RequestError, one_line


def missing_attributes(model: nn.Module, names: tuple[str, ...]) -> list[str]:
    """Return the attributes of `names` ("features", "head") that a model lacks; `head` must be an nn.Linear."""

    def has(name: str) -> bool:
        value = getattr(model, name, None)
        return isinstance(value, nn.Linear) if name == "head" else callable(value)

    return [name for name in names if not has(name)]


def check_features_and_head(model: Any, name: str, images: Tensor) -> None:
    """Raise RequestError unless head(features(images)) equals model(images); sets eval mode."""
    model.eval()
    try:
        with torch.no_grad():
            logits, parts = model(images), model.head(model.features(images))
    except Exception as err:
        raise RequestError(
            f"model '{name}' fails on two images: {one_line(err)}; features(images) must return (B, D), and "
            "head(features(images)) must equal model(images)"
        ) from err
    if parts.shape != logits.shape or not torch.allclose(parts, logits, rtol=1e-3, atol=1e-4):
        difference = (
            f"differ by up to {(parts - logits).abs().max():.3g}"
            if parts.shape == logits.shape
            else f"have shapes {tuple(parts.shape)} and {tuple(logits.shape)}"
        )
        raise RequestError(
            f"model '{name}': head(features(images)) and model(images) {difference}; features must return exactly "
            "the input of head in forward; correct it or choose another model"
        )


def check_logits(logits: Tensor, labels: Tensor) -> None:
    """Raise RequestError unless logits (B, K) are finite and K is larger than every label (B,)."""
    if logits.dim() != 2 or len(logits) != len(labels):
        raise RequestError(
            f"the model returned shape {tuple(logits.shape)} for {len(labels)} images; "
            "it must return one (B, K) tensor of logits"
        )
    if len(labels) and int(labels.max()) >= logits.shape[1]:
        raise RequestError(
            f"label {int(labels.max())} has no logit: the model gives {logits.shape[1]} classes; "
            "use weights that fit the data set"
        )
    if not bool(torch.isfinite(logits).all()):
        raise RequestError("the model returned logits that are not finite; its accuracy means nothing")
