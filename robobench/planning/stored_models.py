"""Models of a store, a snapshot or the Hugging Face Hub in place of a weights file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from robobench.errors import RequestError
from robobench.models.spec import is_factory
from robobench.planning.request import ExperimentConfig
from robobench.store.artifacts import WEIGHT_FILES
from robobench.store.hub import HubName, fetch_model, is_hub_name


def use_stored_model(request: ExperimentConfig, folder: Path) -> ExperimentConfig:
    """Return the request for a model of a store or snapshot, with the data, images and model it was trained with."""
    if request.weights is not None:
        raise RequestError("--model-from names the weights already; leave the weights file out")
    folder = local_model(folder)
    file = folder / WEIGHT_FILES["last"]
    if not (folder / "config.json").is_file() or not file.is_file():
        raise RequestError(
            f"--model-from '{folder}' holds no trained model with weights; give STORE/NAME, see store list"
        )
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    spec = config["spec"]
    sets = [f"run.image_size={spec['image_size']}", f"run.attack_resolution={config['resolution']}"]
    sets += [f"run.stem={spec['stem']}", f"run.interpolation={spec['interpolation']}"]
    return replace(
        request,
        dataset=config["dataset"],
        model=spec["name"],
        weights=file,
        name=request.name or folder.name,
        sets=(*sets, *request.sets),
    )


def use_hub_weights(request: ExperimentConfig) -> ExperimentConfig:
    """Return the request with a local file where it names weights of the Hub."""
    if not is_hub_name(request.weights):
        return request
    text = str(request.weights)
    found = local_model(text)
    if found.is_dir():
        return use_stored_model(replace(request, weights=None), found)
    return replace(request, weights=found, name=request.name or HubName.parse(text).repo.partition("/")[2])


def use_hub_checkpoint(checkpoint: Any, flags: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return a name in a store or a weights file, and the flags with that store, where `checkpoint` is on the Hub."""
    if not is_hub_name(checkpoint):
        return checkpoint, flags
    local = local_model(str(checkpoint))
    return (local.name if local.is_dir() else local), {**flags, "out": local.parent}


def local_weights(file: str) -> Path:
    """Return a weights file; one of the Hub is downloaded and verified, as by `local_model`."""
    found = local_model(file)
    return found / WEIGHT_FILES["last"] if is_hub_name(file) and found.is_dir() else found


def local_model(place: str | Path) -> Path:
    """Return the folder of a trained model, or a weights file; one of the Hub is downloaded and verified.

    Raises:
        RequestError: no such model, or it needs code that a repository may not choose.
        ArtifactError: a file does not match its digest.
    """
    if not is_hub_name(place):
        return Path(place)
    found = fetch_model(place)
    if found.is_dir():
        name = json.loads((found / "config.json").read_text())["spec"]["name"]
        if is_factory(name):
            raise RequestError(
                f"'{place}' was built by the function '{name}', and a repository does not choose which code runs; give "
                f"--model FILE.py:FUNCTION and the weights file '{found / WEIGHT_FILES['last']}'"
            )
    return found
