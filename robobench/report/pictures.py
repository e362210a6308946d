"""The images that most networks lose, from the transfer examples a store keeps. Nothing is trained or attacked here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robobench.errors import RobobenchError
from robobench.report.text import point
from robobench.store import MANIFEST, Store

SHOWN = 8


@dataclass(frozen=True)
class Worst:
    """A few test images and what an attack made of them: (N, 3, H, W) in [0, 1]."""

    images: np.ndarray[Any, Any]
    adv: np.ndarray[Any, Any]
    notes: list[str]
    title: str


def lost_most(store: Store, data_digest: str, data_dir: Path | None) -> Worst | str:
    """Show the images that most networks lose under the strongest stored transfer attack.

    Only the first chunk of test images is looked at.

    Returns:
        The pictures, or in one line why there are none.
    """
    records = [json.loads((folder / "record.json").read_text()) for folder in store.manifests("evaluations")]
    records = [r for r in records if (r["protocol"], r["status"], r["data_digest"]) == ("transfer", "ok", data_digest)]
    chunks = []
    for folder in store.manifests("transfer"):
        recipe = json.loads((folder / MANIFEST).read_text())["recipe"]
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
                [[bit == "1" for bit in r["robust_bits"][:length]] for r in at if len(r["robust_bits"]) >= length]
            )
            if len(kept):
                choices.append((kept.mean(), attack, folder, recipe, (~kept).sum(0), len(kept)))
    if not choices:
        return "no pictures: no evaluation fits the transfer examples in the store"
    _, attack, folder, recipe, lost, networks = min(choices, key=lambda choice: (choice[0], choice[1]))
    index = np.sort(np.argsort(-lost, kind="stable")[:SHOWN])
    clean = _test_images(store, data_digest, data_dir, index)
    if isinstance(clean, str):
        return clean
    images, labels = clean
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


def _test_images(
    store: Store, data_digest: str, data_dir: Path | None, index: np.ndarray[Any, Any]
) -> tuple[np.ndarray[Any, Any], list[int]] | str:
    """Load test images if the data set is at hand and is the one the store was made with."""
    import torch

    from robobench import data

    for folder in store.manifests("model"):
        config = json.loads((folder / "config.json").read_text())
        if config["data_digest"] == data_digest:
            break
    else:
        return "no pictures: no network in the store says which data set this is"
    try:
        found = data.load(
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
    chosen = torch.from_numpy(index)
    return found.test.images(chosen).numpy(), found.test.labels[chosen].tolist()
