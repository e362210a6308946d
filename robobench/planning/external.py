"""Models that were trained elsewhere: loaded once, tried on two test images, and given a key of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from robobench.core.threat import check_unit_range
from robobench.data.split import Dataset
from robobench.errors import RequestError
from robobench.models.build import build_model
from robobench.models.checks import check_logits
from robobench.models.pretrained import with_published_weights
from robobench.models.robustbench_zoo import ZOO_PREFIX
from robobench.models.spec import ModelSpec, brings_own_normalization
from robobench.models.weights import infer_class_count, load_weights, read_weights, state_digest
from robobench.models.wrapper import PreprocessedModel
from robobench.planning.parsing import parse_value
from robobench.planning.plan import STORE_VERSION, ExternalModel
from robobench.store.artifacts import file_digest


def plan_external_model(
    spec: ModelSpec,
    weights: Path | None,
    dataset: Dataset,
    *,
    mean: str | None = None,
    std: str | None = None,
    device: str,
    resolution: int,
    outputs: int | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> ExternalModel:
    """Load a model that was trained elsewhere, try it on two test images, and return it for a plan.

    Args:
        spec: of the model; its number of classes and its normalization may change.
        weights: file of weights; None if the model brings its own.
        mean, std: values of --mean and --std.
        resolution: side of the images in pixels.
        outputs: number of logits a teacher must have; None accepts any number with a logit for every label.
        note: called with what the user should know about the weights.

    Raises:
        RequestError: the file holds no weights, they do not fit, or the outputs are no logits.
    """
    spec, model = _load(spec, weights, dataset, mean, std, note)
    model = model.to(device).eval()
    with torch.no_grad():
        images = dataset.test.images(torch.arange(min(2, len(dataset.test))))
        check_unit_range(images)
        logits = model(images)
    check_logits(logits, dataset.test.labels[: len(images)])
    if outputs is not None and logits.shape[1] != outputs:
        raise RequestError(
            f"teacher '{weights or spec.name}' gives {logits.shape[1]} classes, the data set has {outputs}; give a "
            "teacher of the same classes, or leave the flag out to train one"
        )
    if int(dataset.test.labels.max()) >= logits.shape[1]:
        check_logits(logits[:1], dataset.test.labels.max().view(1))
    recipe = {
        "external": file_digest(weights) if weights is not None else state_digest(model),
        "file": weights.stem if weights is not None else spec.name.rpartition(":")[2],
        "model": spec.recipe(),
        "resolution": resolution,
        "store": STORE_VERSION,
        "train_images": 0,
    }
    return ExternalModel(spec=spec, recipe=recipe, dataset=dataset.name, weights=weights)


def _load(
    spec: ModelSpec,
    weights: Path | None,
    dataset: Dataset,
    mean: str | None,
    std: str | None,
    note: Callable[[str], None],
) -> tuple[ModelSpec, PreprocessedModel]:
    """Build the model with its weights; return it with its final spec."""
    state = read_weights(weights) if weights is not None else None
    classes, user_data = dataset.num_classes, ":" in dataset.name  # a user's data need not contain every class
    if state is not None and user_data and spec.name.startswith(ZOO_PREFIX):  # can be built for its own count only
        classes = max([classes, *[len(value) for value in state.values() if value.dim() == 2][-1:]])
    spec = replace(spec, num_classes=classes, pretrained=False)
    if weights is None:
        spec = with_published_weights(spec)
    if brings_own_normalization(spec.name) or mean or std:
        spec = replace(spec, mean=_parse_channels("mean", mean, 0.0), std=_parse_channels("std", std, 1.0))
    model = build_model(spec)
    if state is not None and user_data and (count := infer_class_count(model, state, classes)) > classes:
        spec = replace(spec, num_classes=count)
        model = build_model(spec)
    if weights is not None:
        for line in load_weights(model, weights):
            note(line)
    return spec, model


def _parse_channels(flag: str, text: str | None, default: float) -> tuple[float, float, float]:
    """Parse the three numbers of --mean or --std."""
    if text is None:
        return (default,) * 3
    values = parse_value(text, tuple[float, ...], f"--{flag}")
    if len(values) != 3 or (flag == "std" and min(values) <= 0):
        raise RequestError(f"--{flag} takes three numbers{' above 0' if flag == 'std' else ''}, got '{text}'")
    return values  # type: ignore[no-any-return]
