"""Image panels of the report, from stored results: the images that most models misclassify, and figures of methods.

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
from robobench.report.formatting import format_threat
from robobench.results.records import EvaluationRecord
from robobench.store.artifacts import Store

if TYPE_CHECKING:
    from torch import Tensor

    from robobench.data.split import Dataset, Split

COLUMNS = 8  # images in a panel

LoadImages = Callable[[], "Dataset | str"]  # returns the data set, or why it is not available


@dataclass(frozen=True)
class AdversarialPanel:
    """Test images and their adversarial examples, (N, 3, H, W) each in [0, 1]."""

    images: np.ndarray[Any, Any]
    adv: np.ndarray[Any, Any]
    notes: list[str]  # one per image
    title: str


def most_misclassified_images(
    store: Store, records: Sequence[EvaluationRecord], data_digest: str, load_images: LoadImages
) -> AdversarialPanel | str:
    """Show the images that most models classify correctly, and misclassify under the strongest stored transfer attack.

    Only the first batch of stored transfer examples is used.

    Returns:
        The panel, or a line that says why there is none.

    Raises:
        ArtifactError: the transfer examples are damaged.
    """
    records = [r for r in records if (r["protocol"], r["status"], r["data_digest"]) == ("transfer", "ok", data_digest)]
    batches = []
    for folder in store.iter_artifacts("transfer"):
        recipe = store.manifest(folder)["recipe"]
        if recipe["data"] == data_digest and recipe["examples"][0] == 0:
            batches.append((recipe["attack"]["eps"], recipe["attack"]["attack"], folder, recipe))
    if not batches or not records:
        return "no panel of attacked images: the store has no transfer examples of these images"
    max_eps = max(batch[0] for batch in batches)
    candidates = []
    for eps, attack, folder, recipe in batches:
        at = [r for r in records if (r["attack"], r["threat_eps"]) == (attack, eps)]
        if eps == max_eps and at:
            length = recipe["examples"][1] + 1
            robust, clean = (
                np.array([[bit == "1" for bit in (r[bits] or "")[:length]] for r in at if r["examples"] >= length])
                for bits in ("robust_bits", "clean_bits")
            )
            if len(robust):
                lost = (clean & ~robust).sum(0)
                candidates.append((robust.mean(), attack, folder, recipe, lost, len(robust)))
    if not candidates:
        return "no panel of attacked images: no evaluation used the transfer examples in the store"
    _, attack, folder, recipe, wrong, models = min(candidates, key=lambda candidate: (candidate[0], candidate[1]))
    index = np.sort(np.argsort(-wrong, kind="stable")[:COLUMNS])
    dataset = load_images()
    if isinstance(dataset, str):
        return dataset
    images, labels = _select(dataset.test, index)
    store.verify(folder)
    threat = format_threat(recipe["attack"]["norm"], recipe["attack"]["eps"])
    return AdversarialPanel(
        images,
        _load_examples(folder, index),
        [
            f"no. {i}: {dataset.class_name(label) if dataset.class_names else f'class {label}'}\n"
            f"wrong after: {wrong[i]} of {models}"
            for i, label in zip(index, labels, strict=True)
        ],
        f"Images that most models classify correctly, but not after the attack: {attack}, {threat}, transfer",
    )


def _load_examples(folder: Path, index: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    from safetensors.numpy import load_file

    return np.asarray(load_file(folder / "examples.safetensors")["adv"][index])


def _select(split: Split, index: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], list[int]]:
    """Return the images and labels at `index`."""
    import torch

    rows = torch.from_numpy(index)
    return split.images(rows).numpy(), split.labels[rows].tolist()


def load_test_images(store: Store, data_digest: str, data_dir: Path | None) -> Dataset | str:
    """Load the data set that a store was made with, without a download; or return why that is not possible."""
    from robobench.data import load_dataset

    for folder in store.iter_artifacts("model"):
        config = json.loads((folder / "config.json").read_text())
        if config["data_digest"] == data_digest:
            break
    else:
        return "no image panels: no model in the store names the data set"
    try:
        dataset = load_dataset(
            config["dataset"],
            data_dir=data_dir,
            resolution=config["resolution"],
            need_train=False,
            device="cpu",
            download=False,
        )
    except (RobobenchError, OSError) as err:
        return f"no image panels: {err}"
    if dataset.test.digest != data_digest:
        return f"no image panels: '{config['dataset']}' on this machine differs from the data the store was made with"
    return dataset


def stage_state_loader(store: Store, recipe: dict[str, Any]) -> Callable[[str], dict[str, Tensor] | None]:
    """Return a function from stage name to the state that the stage of this training left, None if it is deleted."""

    def load_state(stage: str) -> dict[str, Tensor] | None:
        from safetensors.torch import load_file

        folder = store.find_stage(recipe, stage)
        if folder is None:
            return None
        store.verify(folder)
        return load_file(folder / "state.safetensors")

    return load_state


def method_panel(store: Store, name: str, load_images: LoadImages) -> dict[str, np.ndarray[Any, Any]] | str:
    """Call `Defense.visualize` for the model in folder `name` on the first test images.

    Returns:
        Row name -> (N, 3, H, W), empty if the method has no figure; or a line that says why there is none.
    """
    import torch

    from robobench.training.base import Defense

    folder = store.folder("model", name)
    config = json.loads((folder / "config.json").read_text())
    try:
        cls = load_defense(config["defense"])
    except RequestError:  # an external model, or a plug-in that is not installed here
        return {}
    if cls.visualize is Defense.visualize:
        return {}
    dataset = load_images()
    if isinstance(dataset, str):
        return dataset
    split = dataset.test
    load_state = stage_state_loader(store, store.manifest(folder)["recipe"])
    images = split.images(torch.arange(min(COLUMNS, len(split))))
    try:
        shown = cls(cls.Config(**config["config"])).visualize(load_state, images, config["seed"])
        for row, panel in shown.items():
            if panel.shape != images.shape:
                raise ValueError(f"row '{row}' has shape {tuple(panel.shape)}, expected {tuple(images.shape)}")
        return {row: panel.detach().numpy() for row, panel in shown.items()}
    except Exception as err:  # plug-in code: the report shows the reason
        return f"no image panel of {config['defense']}: {' '.join(str(err).split())}"
