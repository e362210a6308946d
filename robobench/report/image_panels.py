"""Pictures from what a store keeps: the images that most networks lose, and what a method shows of its own.

Nothing is trained or attacked here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from robobench.errors import RequestError, RobobenchError
from robobench.plugins.discovery import load_defense
from robobench.report.formatting import point
from robobench.results.records import EvaluationRecord
from robobench.store.artifacts import Store

if TYPE_CHECKING:
    from torch import Tensor

    from robobench.data.split import Split


SHOWN = 8

Look = Callable[[], "Split | str"]  # the test images, or why they are not at hand


@dataclass(frozen=True)
class Worst:
    """A few test images and what an attack made of them: (N, 3, H, W) in [0, 1]."""

    images: np.ndarray[Any, Any]
    adv: np.ndarray[Any, Any]
    notes: list[str]
    title: str


def lost_most(store: Store, records: Sequence[EvaluationRecord], data_digest: str, look: Look) -> Worst | str:
    """Show the images that most networks lose under the strongest stored transfer attack.

    Only the first chunk of test images is looked at.

    Returns:
        The pictures, or in one line why there are none.

    Raises:
        ArtifactError: the examples are damaged.
    """
    records = [r for r in records if (r["protocol"], r["status"], r["data_digest"]) == ("transfer", "ok", data_digest)]
    chunks = []
    for folder in store.iter_artifacts("transfer"):
        recipe = store.manifest(folder)["recipe"]
        if recipe["data"] == data_digest and recipe["examples"][0] == 0:
            chunks.append((recipe["attack"]["eps"], recipe["attack"]["attack"], folder, recipe))
    if not chunks or not records:
        return "no pictures: the store keeps no transfer examples for these images"
    top = max(chunk[0] for chunk in chunks)
    choices = []
    for eps, attack, folder, recipe in chunks:
        at = [r for r in records if (r["attack"], r["threat_eps"]) == (attack, eps)]
        if eps == top and at:
            length = recipe["examples"][1] + 1
            kept = np.array(
                [[bit == "1" for bit in bits[:length]] for r in at if len(bits := r["robust_bits"] or "") >= length]
            )
            if len(kept):
                choices.append((kept.mean(), attack, folder, recipe, (~kept).sum(0), len(kept)))
    if not choices:
        return "no pictures: no evaluation fits the transfer examples in the store"
    _, attack, folder, recipe, lost, networks = min(choices, key=lambda choice: (choice[0], choice[1]))
    index = np.sort(np.argsort(-lost, kind="stable")[:SHOWN])
    split = look()
    if isinstance(split, str):
        return split
    images, labels = _of(split, index)
    store.verify(folder)
    return Worst(
        images,
        _examples(folder, index),
        [f"no. {i}, class {label}\nlost by {lost[i]} of {networks}" for i, label in zip(index, labels, strict=True)],
        f"Lost by most networks: {attack}, {point(recipe['attack']['norm'], recipe['attack']['eps'])}, "
        "made on the source",
    )


def _examples(folder: Path, index: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    from safetensors.numpy import load_file

    return np.asarray(load_file(folder / "examples.safetensors")["adv"][index])


def _of(split: Split, index: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], list[int]]:
    import torch

    chosen = torch.from_numpy(index)
    return split.images(chosen).numpy(), split.labels[chosen].tolist()


def images_at_hand(store: Store, data_digest: str, data_dir: Path | None) -> Split | str:
    """Load the test images a store was made with, if they are at hand; else say why not."""
    from robobench.data import load_dataset

    for folder in store.iter_artifacts("model"):
        config = json.loads((folder / "config.json").read_text())
        if config["data_digest"] == data_digest:
            break
    else:
        return "no pictures: no network in the store says which data set this is"
    try:
        found = load_dataset(
            config["dataset"],
            data_dir=data_dir,
            resolution=config["resolution"],
            need_train=False,
            device="cpu",
            download=False,
        )
    except (RobobenchError, OSError) as err:
        return f"no pictures: {err}"
    if found.test.digest != data_digest:
        return f"no pictures: '{config['dataset']}' here is not the data set the store was made with"
    return found.test


def states(store: Store, training: dict[str, Any]) -> Callable[[str], dict[str, Tensor] | None]:
    """Return what gives the state that a stage left in the training of this recipe, or None where it is gone."""

    def left(stage: str) -> dict[str, Tensor] | None:
        from safetensors.torch import load_file

        folder = store.find_stage(training, stage)
        if folder is None:
            return None
        store.verify(folder)
        return load_file(folder / "state.safetensors")

    return left


def of_method(store: Store, name: str, look: Look) -> dict[str, np.ndarray[Any, Any]] | str:
    """Return the rows of pictures that the method of the network in folder `name` makes of the first test images.

    Returns:
        Row -> (N, 3, H, W), empty where the method shows nothing; or in one line why there are none.
    """
    import torch

    from robobench.training.base import Defense

    folder = store.folder("model", name)
    config = json.loads((folder / "config.json").read_text())
    try:
        cls = load_defense(config["defense"])
    except RequestError:  # a stranger's plug-in that is not here, or a network from elsewhere
        return {}
    if cls.visualize is Defense.visualize:
        return {}
    split = look()
    if isinstance(split, str):
        return split
    left = states(store, store.manifest(folder)["recipe"])
    images = split.images(torch.arange(min(SHOWN, len(split))))
    try:
        shown = cls(cls.Config(**config["config"])).visualize(left, images, config["seed"])
        for row, pictures in shown.items():
            if pictures.shape != images.shape:
                raise ValueError(f"the row '{row}' is {tuple(pictures.shape)}, not {tuple(images.shape)}")
        return {row: pictures.detach().numpy() for row, pictures in shown.items()}
    except Exception as err:  # the plug-in's edge: the reason becomes a line of the page
        return f"no pictures of {config['defense']}: {' '.join(str(err).split())}"
