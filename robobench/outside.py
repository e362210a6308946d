"""Networks that somebody else trained: loaded once, tried on two test images, and given a key of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from robobench import models, zoo
from robobench.api import Recipe
from robobench.data import Dataset
from robobench.errors import RequestError
from robobench.evaluation import check_logits
from robobench.plan import STORE_VERSION, External, Training
from robobench.request import Request, parse_value
from robobench.store import file_digest
from robobench.threat import check_unit_range
from robobench.weights import class_count, state_digest


def external(
    spec: models.ModelSpec,
    name: str,
    weights: Path | None,
    request: Request,
    dataset: Dataset,
    *,
    device: str,
    resolution: int,
    outputs: int | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> Training:
    """Return a network that came from elsewhere, loaded once and tried on two test images.

    Args:
        spec: of a network like it, whose name is replaced by `name`.
        weights: None where the network brings its own.
        resolution: side of the images, in pixels.
        outputs: how many logits a teacher must give; None: any number that has one for every label.
        note: told what the user should know about the weights.

    Raises:
        RequestError: the weights are no weights, do not fit, or the outputs are no logits.
    """
    state = models.read_weights(weights) if weights is not None else None
    classes, unseen = dataset.num_classes, ":" in request.dataset  # such a data set need not show every class
    if state is not None and unseen and name.startswith(zoo.PREFIX):  # not built for any other count than its own
        classes = max([classes, *[len(value) for value in state.values() if value.dim() == 2][-1:]])
    spec = replace(spec, name=name, num_classes=classes, pretrained=False)
    if weights is None:
        spec = models.with_own_weights(spec)
    if models.normalizes(name) or request.mean or request.std:
        mean, std = _channels("mean", request.mean, 0.0), _channels("std", request.std, 1.0)
        spec = replace(spec, mean=mean, std=std)
    model = models.build(spec)
    if state is not None and unseen and (own := class_count(model, state, classes)) > classes:
        spec = replace(spec, num_classes=own)
        model = models.build(spec)
    model = model.to(device).eval()
    if weights is not None:
        for line in models.load_weights(model, weights):
            note(line)
    with torch.no_grad():
        images = dataset.test.images(torch.arange(min(2, len(dataset.test))))
        check_unit_range(images)
        logits = model(images)
    check_logits(logits, dataset.test.labels[: len(images)])
    if outputs is not None and logits.shape[1] != outputs:
        raise RequestError(
            f"teacher '{weights or name}' gives {logits.shape[1]} classes, the data set has {outputs}; give a teacher "
            "of the same classes, or leave the flag out to train one"
        )
    if int(dataset.test.labels.max()) >= logits.shape[1]:
        check_logits(logits[:1], dataset.test.labels.max().view(1))
    recipe = {
        "external": file_digest(weights) if weights is not None else state_digest(model),
        "file": weights.stem if weights is not None else name.rpartition(":")[2],
        "model": spec.recipe(),
        "resolution": resolution,
        "store": STORE_VERSION,
        "train_images": 0,
    }
    return Training(External, Recipe(), 0, spec, None, {}, recipe, request.dataset, weights)


def _channels(flag: str, text: str | None, default: float) -> tuple[float, float, float]:
    """Read three numbers of --mean or --std."""
    if text is None:
        return (default,) * 3
    values = parse_value(text, tuple[float, ...], f"--{flag}")
    if len(values) != 3 or (flag == "std" and min(values) <= 0):
        raise RequestError(f"--{flag} takes three numbers{' above 0' if flag == 'std' else ''}, got '{text}'")
    return values  # type: ignore[no-any-return]
