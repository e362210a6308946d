"""Load trained models from a store."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robobench.errors import RequestError
from robobench.store.artifacts import WEIGHT_FILES, Store
from robobench.store.hub import fetch_model, fetch_store, is_hub_name

if TYPE_CHECKING:
    from torch import nn

    from robobench.models.wrapper import PreprocessedModel
    from robobench.planning.plan import ExternalModel
    from robobench.planning.planner import Planner


def load(store: str | Path, name: str, *, device: str = "cpu", factory: str | None = None) -> nn.Module:
    """Load a trained model in eval mode: images (B, 3, H, W) in [0, 1] -> logits (B, K).

    Args:
        store: a store, a snapshot or hf:OWNER/REPO.
        name: a defense of which the store has exactly one model, or the name of a model's folder.
        factory: FILE.py:FUNCTION for a model built by a user's function. The store never decides which code runs.

    Raises:
        RequestError: no such model, or several.
        ArtifactError: files do not match their digests.
    """
    return load_trained(store, name, factory)[0].to(device)


def load_trained(
    store: str | Path, name: str, factory: str | None = None, selection: str = "last"
) -> tuple[PreprocessedModel, dict[str, Any]]:
    """Return a trained model, loaded as by `load`, and its config.json.

    Args:
        selection: weights of the epoch to load: last or best.
    """
    from safetensors.torch import load_file

    from robobench.models.build import build_model
    from robobench.models.spec import ModelSpec, is_factory

    place = Store(fetch_store(store, weights=False))
    configs = {}
    for folder in place.iter_artifacts("model"):
        place.verify(folder, "config.json")
        configs[folder.name] = json.loads((folder / "config.json").read_text())
    matching = [n for n, config in configs.items() if name in (n, config["defense"])]
    if len(matching) != 1:
        what = f"{len(matching)} models" if matching else "no model"
        options = ", ".join(matching or configs) or "nothing yet"
        raise RequestError(f"'{store}' holds {what} called '{name}'; name one of: {options}")
    folder = fetch_model(f"{store}/{matching[0]}") if is_hub_name(store) else place.folder("model", matching[0])
    place.verify(folder)
    spec = ModelSpec.from_config(configs[matching[0]]["spec"])
    if is_factory(spec.name):
        if factory is None:
            raise RequestError(
                f"the model '{matching[0]}' was built by your function '{spec.name}'; "
                "name the function: load(..., factory='FILE.py:FUNCTION')"
            )
        spec = replace(spec, name=factory)
    model = build_model(spec)
    file = folder / WEIGHT_FILES[selection]
    if not file.is_file():
        raise RequestError(f"the weights of '{matching[0]}' are not in '{store}'; train the model again")
    model.load_state_dict(load_file(file))
    return model.eval(), configs[matching[0]]


def load_external(planner: Planner, planned: ExternalModel) -> PreprocessedModel:
    """Load a model that was trained elsewhere, in eval mode on the device."""
    from robobench.models.build import build_model
    from robobench.models.weights import load_weights

    model = build_model(planned.spec)
    if planned.weights is not None:
        load_weights(model, planned.weights, planned.weights_key)
    return model.to(planner.settings.device).eval()
