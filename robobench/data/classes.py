"""Classes of a data set and outputs of a model that was trained on more classes."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

from robobench.data.split import Dataset, Split, short_digest
from robobench.errors import RequestError

WORDNET_ID = re.compile(r"n\d{8}")  # class folders of ImageNet


def match_classes(dataset: Dataset, outputs: int, model: str, note: Callable[[str], None]) -> Dataset:
    """Return the data set with labels that are the numbers of a model's logits.

    The folders of an image folder are found by name if the model has more classes: WordNet IDs for a model of
    ImageNet's 1000 classes, whole numbers as the numbers themselves. Labels of arrays are numbers already.

    Args:
        outputs: number of the model's logits.
        model: name, for messages.
        note: called with how classes were matched.

    Raises:
        RequestError: the numbers of classes do not fit.
    """
    classes, names = dataset.num_classes, dataset.class_names
    if outputs == classes:
        return dataset
    problem = f"model '{model}' gives {outputs} classes, data set '{dataset.name}' has {classes}"
    if outputs < classes or ":" not in dataset.name:
        raise RequestError(f"{problem}; give a model for {classes} classes, or other data")
    if names is None:
        note(f"{problem}: labels are read as numbers of the model's classes")
        return replace(dataset, num_classes=outputs)
    if all(name.isdecimal() and int(name) < outputs for name in names):
        numbers = [int(name) for name in names]
        how = "class folders that are whole numbers are the model's class numbers"
    elif outputs == 1000 and all(WORDNET_ID.fullmatch(name) for name in names):
        numbers = _imagenet_numbers(names, problem)
        how = "WordNet IDs are matched with ImageNet's 1000 classes in their usual order"
    else:
        raise RequestError(
            f"{problem}, whose names say not which of them ('{names[0]}', ...); name the class folders by the model's "
            "class numbers (0, 1, ...), or by WordNet IDs for ImageNet's 1000 classes"
        )
    note(f"{problem}: {how}, such as '{names[0]}' = {numbers[0]}")
    train = _renumber(dataset.train, numbers) if dataset.train is not None else None
    test = _renumber(dataset.test, numbers)
    return replace(dataset, num_classes=outputs, class_names=None, train=train, test=test)


def _imagenet_numbers(names: Sequence[str], problem: str) -> list[int]:
    from timm import data

    info: Any = data.ImageNetInfo  # type: ignore[attr-defined]
    order = {name: number for number, name in enumerate(info("imagenet-1k").label_names())}
    unknown = [name for name in names if name not in order]
    if unknown:
        raise RequestError(f"{problem}, and '{unknown[0]}' is not one of ImageNet's 1000; remove that folder")
    return [order[name] for name in names]


def _renumber(split: Split, numbers: list[int]) -> Split:
    """Return a split with label n replaced by numbers[n]."""
    import torch

    part = copy(split)
    part.labels = torch.tensor(numbers, device=split.labels.device)[split.labels]
    part.digest = short_digest(split.digest, "classes", *numbers)
    return part
