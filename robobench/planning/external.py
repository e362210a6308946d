"""Models that were trained elsewhere: loaded once, tried on two test images, and given a key of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from robobench.core.numbers import Channels, parse_channels
from robobench.core.threat import check_unit_range
from robobench.data.classes import match_classes
from robobench.data.split import Dataset
from robobench.errors import RequestError
from robobench.models.build import build_model
from robobench.models.checkpoint import StateDict, read_state_dicts
from robobench.models.checks import check_logits, logits_fingerprint, try_model
from robobench.models.pretrained import (
    TORCHVISION_PREFIX,
    has_fixed_size,
    published_preprocessing,
    with_published_preprocessing,
    with_published_weights,
)
from robobench.models.robustbench_zoo import ZOO_PREFIX
from robobench.models.spec import ModelSpec, brings_own_normalization
from robobench.models.weights import infer_class_count, load_weights, match_weights, state_digest
from robobench.models.wrapper import PreprocessedModel
from robobench.planning.plan import STORE_VERSION, ExternalModel
from robobench.store.artifacts import file_digest


@dataclass(frozen=True, kw_only=True)
class ExternalRequest:
    """A model that was trained elsewhere, as the user describes it.

    Attributes:
        spec: of the model; its number of classes, size, stem and normalization may change.
        weights: file of weights; None if the model brings its own.
        weights_key: which of several models in the file.
        mean, std: values of --mean and --std.
        keep_size: the image size of the spec was asked for.
        outputs: number of logits a teacher must have; None accepts any number with a logit for every label.
        name: in tables; default: the stem of the weights file.
    """

    spec: ModelSpec
    weights: Path | None = None
    weights_key: str | None = None
    mean: str | None = None
    std: str | None = None
    keep_size: bool = False
    outputs: int | None = None
    name: str | None = None

    @property
    def label(self) -> str:
        """Name in messages."""
        return f"{self.weights}" if self.weights is not None else self.spec.name


def plan_external_model(
    asked: ExternalRequest, dataset: Dataset, *, device: str, note: Callable[[str], None] = lambda text: None
) -> tuple[ExternalModel, Dataset]:
    """Load a model that was trained elsewhere, and try it on two test images.

    Args:
        note: called with what the user should know about the model.

    Returns:
        The model for a plan, and the data set with labels that are the numbers of the model's logits.

    Raises:
        RequestError: the file holds no weights, they do not fit, or the outputs are no logits.
    """
    weights = asked.weights
    spec, model = _load(asked, dataset, note)
    model = model.to(device).eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[torch.device(device)] if device != "cpu" else []):
        torch.manual_seed(0)  # a random model gets the same key in every process
        images = dataset.test.images(torch.arange(min(2, len(dataset.test)))).to(device)
        check_unit_range(images)
        logits, notes = try_model(model, asked.label, images)
        zeros = dataset.test.labels[: len(images)].to(logits.device) * 0
        check_logits(logits, zeros)
        check_logits(model(images[:1]), zeros[:1])  # squeeze() in forward() drops the batch
        fingerprint = logits_fingerprint(torch.cat((logits, model(1 - images))))
    for text in notes:
        note(text)
    outputs = logits.shape[1]
    if asked.outputs is not None and outputs != asked.outputs:
        raise RequestError(
            f"teacher '{asked.label}' gives {outputs} classes, the data set has {asked.outputs}; give a "
            "teacher of the same classes, or leave the flag out to train one"
        )
    dataset = match_classes(dataset, outputs, asked.label, note)
    recipe = {
        "external": file_digest(weights) if weights is not None else state_digest(model),
        "file": asked.name or (weights.stem if weights is not None else spec.name.rpartition(":")[2]),
        "logits": fingerprint,
        "model": spec.recipe(),
        "resolution": dataset.resolution,
        "store": STORE_VERSION,
        "train_images": 0,
        **({"weights_key": asked.weights_key} if asked.weights_key is not None else {}),
    }
    planned = ExternalModel(
        spec=spec, recipe=recipe, dataset=dataset.name, weights=weights, weights_key=asked.weights_key
    )
    return planned, dataset


def _load(asked: ExternalRequest, dataset: Dataset, note: Callable[[str], None]) -> tuple[ModelSpec, PreprocessedModel]:
    """Build the model with its weights; return it with its final spec."""
    weights = asked.weights
    dicts = read_state_dicts(weights) if weights is not None else []
    user_data = ":" in dataset.name  # a user's data need not contain every class
    spec = replace(asked.spec, num_classes=_zoo_classes(asked, dataset, dicts), pretrained=False)
    if weights is None:
        spec = with_published_weights(spec, keep_size=asked.keep_size, own_data=user_data)
    spec = _with_normalization(spec, asked, user_data, note)
    if weights is None:
        return spec, build_model(spec)
    choices = [spec, *_other_builds(spec, asked.keep_size)]
    for number, choice in enumerate(choices):
        try:
            model = build_model(choice)
        except RequestError:  # no such stem, for instance
            if number + 1 < len(choices):
                continue
            raise
        match = match_weights(model, dicts, weights, asked.weights_key)
        if user_data and (count := infer_class_count(model, match, choice.num_classes)) > choice.num_classes:
            choice = replace(choice, num_classes=count)
            model = build_model(choice)
            match = match_weights(model, dicts, weights, asked.weights_key)
        spec = choice
        if match.complete:
            break
    if user_data and (sized := _with_published_size(spec, asked.keep_size)) != spec:
        note(
            f"model '{spec.name}' resizes images to {sized.image_size} px, the size of its published weights of "
            f"{spec.num_classes} classes; change it with --image-size"
        )
        spec, model = sized, build_model(sized)
    for line in load_weights(model, weights, asked.weights_key):
        note(line)
    return spec, model


def _with_published_size(spec: ModelSpec, keep_size: bool) -> ModelSpec:
    """Return the spec with the image size of the published weights, if these have as many classes."""
    if keep_size or not spec.name.startswith(("timm:", TORCHVISION_PREFIX)):
        return spec
    published = published_preprocessing(spec.name)
    if published is None or published.num_classes != spec.num_classes or published.resize.side == spec.image_size:
        return spec
    return replace(spec, image_size=published.resize.side, interpolation=published.resize.interpolation)


def _zoo_classes(asked: ExternalRequest, dataset: Dataset, dicts: list[StateDict]) -> int:
    """Return the data set's number of classes; for user data and a model of RobustBench's zoo that of the weights."""
    if not dicts or ":" not in dataset.name or not asked.spec.name.startswith(ZOO_PREFIX):
        return dataset.num_classes
    heads = [len(value) for value in dicts[0].tensors.values() if value.dim() == 2]
    return max([dataset.num_classes, *heads[-1:]])  # a model of the zoo can be built for its own count only


def _other_builds(spec: ModelSpec, keep_size: bool) -> list[ModelSpec]:
    """Return other ways to build a timm network from the same name: native stem, the size it is published for."""
    if not spec.name.startswith("timm:"):
        return []
    out = [replace(spec, stem="native")] if spec.stem != "native" else []
    published = published_preprocessing(spec.name)
    if published is not None and not keep_size and has_fixed_size(spec.name):
        out.append(replace(spec, stem="native", image_size=published.resize.side))
    return out


def _with_normalization(
    spec: ModelSpec, asked: ExternalRequest, user_data: bool, note: Callable[[str], None]
) -> ModelSpec:
    """Return the spec with the mean and std of the flags, else of torchvision's weights; say whose they are."""
    if (asked.mean is None) != (asked.std is None):
        given, other = ("mean", "std") if asked.mean is not None else ("std", "mean")
        neutral = "1,1,1" if other == "std" else "0,0,0"
        raise RequestError(
            f"--{given} without --{other}; a normalization needs both (--{other} {neutral} leaves that part out)"
        )
    if asked.mean is not None and asked.std is not None:
        return replace(spec, mean=parse_channels("mean", asked.mean), std=parse_channels("std", asked.std))
    if spec.name.startswith(TORCHVISION_PREFIX):
        found = with_published_preprocessing(spec, keep_size=True, resolution=spec.image_size)
        if found.mean != spec.mean:
            note(
                f"model '{spec.name}' normalizes with mean {_show(found.mean)} and std {_show(found.std)}, as "
                "torchvision's weights do; change it with --mean and --std (0,0,0 and 1,1,1: none)"
            )
        return found
    if brings_own_normalization(spec.name):
        return replace(spec, mean=(0.0,) * 3, std=(1.0,) * 3)
    if user_data:
        published = published_preprocessing(spec.name) if spec.name.startswith("timm:") else None
        if published is not None:
            spec = replace(spec, mean=published.mean, std=published.std)
        whose = "its published weights'" if published else "ImageNet's"
        note(
            f"model '{spec.name}' normalizes with {whose} mean {_show(spec.mean)} and std {_show(spec.std)}; if it was "
            "trained with others, give --mean and --std"
        )
    return spec


def _show(values: Channels) -> str:
    return ",".join(f"{value:g}" for value in values)
