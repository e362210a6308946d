"""Checks of a model: `features` and `head`, shape and finiteness of its logits."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import torch
from torch import Tensor, nn

from robobench.errors import RequestError, RobobenchError, one_line
from robobench.models.wrapper import PreprocessedModel, UserModel, extract_logits

BATCHNORM_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


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


def try_model(model: PreprocessedModel, name: str, images: Tensor) -> tuple[Tensor, list[str]]:
    """Run a model on a few images in eval mode, and say what the user should know.

    Args:
        model: in eval mode, on the device of the images. Its buffers are restored.
        name: for messages.
        images: (B, 3, H, W) in [0, 1].

    Returns:
        Logits (B, K), and notes: where the logits were in its output, its precision.

    Raises:
        RequestError: it fails, returns no logits, or changes its BatchNorm statistics.
    """
    before = {key: buffer.clone() for key, buffer in model.named_buffers()}
    given = images.clone()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
            logits = model(given)
            output = model.net(model.prepare(given)) if isinstance(model, UserModel) else logits
    except RobobenchError:
        raise
    except Exception as err:
        raise RequestError(f"model '{name}' fails on images {tuple(images.shape)}: {_explain_failure(err)}") from err
    moved = [key for key, buffer in model.named_buffers() if not torch.equal(buffer, before[key])]
    with torch.no_grad():
        for key, buffer in model.named_buffers():
            buffer.copy_(before[key])
    if any(key.endswith(BATCHNORM_BUFFERS) for key in moved):
        raise RequestError(
            f"model '{name}' changes its BatchNorm statistics when evaluated ('{moved[0]}'): it runs in training mode; "
            "call eval() on it, and not train() in its forward()"
        )
    notes = []
    if isinstance(model, UserModel):
        where = extract_logits(output)[1]
        notes += [f"model '{name}': the logits are {where}"] if where else []
        if model.dtype != torch.float32:
            kind = str(model.dtype).removeprefix("torch.")
            notes.append(f"model '{name}' has {kind} parameters: it runs in {kind}, its logits are float32")
    return logits, notes


def _explain_failure(err: Exception) -> str:
    """Return an error on one line, with what to change."""
    text = one_line(err)[:300]
    channels = re.search(r"to have (\d+) channels, but got 3 channels", text)
    if channels:
        first = "images.mean(1, keepdim=True)" if channels[1] == "1" else f"{channels[1]} channels"
        return f"{text}; robobench gives 3 channels: make {first} of them first in forward()"
    if any(word in text for word in ("size", "shape", "dimension")):
        return f"{text}; if it was made for images of another size, add --image-size N"
    return f"{text}; it must take images (B, 3, H, W) in [0, 1] and return logits (B, K)"


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


def logits_fingerprint(logits: Tensor) -> str:
    """Return 16 hexadecimal digits of logits (B, K), rounded to 1/256 of each row's largest absolute value.

    The rounding hides differences between machines. The digits tell models apart that have equal weights and code, and
    read different files, environment variables or attributes.
    """
    largest = logits.abs().amax(1, keepdim=True).clamp_min(torch.finfo(logits.dtype).tiny)
    steps = (256 * (logits / largest).double()).round().to(torch.int16).cpu()
    return hashlib.sha256(steps.numpy().tobytes()).hexdigest()[:16]
