"""Checks of a request that need neither torch nor data, so that a wrong flag is refused in a second."""

from __future__ import annotations

from pathlib import Path

from robobench.core.numbers import canonical_norm, parse_channels, parse_eps, parse_radii, parse_train_threat
from robobench.core.randomness import Randomness
from robobench.core.registry import match_name, unknown_name
from robobench.data.info import dataset_info
from robobench.errors import RequestError
from robobench.models.checkpoint import check_file
from robobench.models.robustbench_zoo import ZOO_PREFIX
from robobench.models.spec import MODELS, check_model_name, is_factory
from robobench.models.user_factory import find_source_file
from robobench.planning.names import match_request
from robobench.planning.parsing import parse_fields, parse_sets
from robobench.planning.presets import preset_layers
from robobench.planning.request import ExperimentConfig, RunConfig
from robobench.planning.stored_models import local_weights
from robobench.planning.teacher_files import Teachers
from robobench.planning.validate import check_flags
from robobench.plugins.discovery import add_plugin_file, discover
from robobench.store.hub import is_hub_name


def check_request(request: ExperimentConfig) -> ExperimentConfig:
    """Check what can be checked without torch, and return the request with its names in their known spelling.

    Raises:
        RequestError: an unknown name, a missing file, or a wrong value.
    """
    for file in request.plugins:
        add_plugin_file(file)
    request = match_request(request)
    check_flags(request)
    preset_layers(request.preset or dataset_info(request.dataset).preset, request.model)
    kind, colon, path = request.dataset.partition(":")
    if colon and kind != "hf" and not Path(path).expanduser().exists():
        raise RequestError(f"no file or folder '{path}' for data set '{request.dataset}'; write {kind}:PATH")
    if is_hub_name(request.model):
        raise RequestError(
            f"--model {request.model} is no architecture; give it as weights: robobench evaluate {request.model}"
        )
    _check_model(request.model)
    if request.weights is not None:
        check_file(request.weights)
    for helper in filter(None, (*request.transfer_source, request.bpda)):
        if is_hub_name(helper) and helper in request.transfer_source:
            continue
        name, equals, file = helper.partition("=")
        _check_model(name)
        if equals:
            check_file(local_weights(file))
    Randomness.parse(request.eot, request.verdict)
    for flag, text in (("mean", request.mean), ("std", request.std)):
        if text is not None:
            parse_channels(flag, text)
    norm = canonical_norm(request.norm)
    for of, radii in parse_radii(request.eps, norm).items():
        for text in radii:
            parse_eps(text, of)
    for train_norm, radius in parse_train_threat(request.train_norm or norm, request.train_eps):
        if radius is not None:
            parse_eps(radius, train_norm)
    for kind, names in (("defense", request.defenses), ("attack", request.attacks or ())):
        known = discover(kind)
        for name in names:
            if name.partition(":")[0] not in known:
                raise unknown_name(kind, name.partition(":")[0], known)
    for name in request.track:
        if name not in (known := discover("tracker")):
            raise unknown_name("tracker", name, known)
    parse_fields(RunConfig, parse_sets(request.sets).get("run", {}), "run")
    Teachers(request.teachers).check_files()
    return request


def _check_model(name: str) -> None:
    check_model_name(match_name(name, MODELS))
    if is_factory(name) and not name.startswith(ZOO_PREFIX):
        find_source_file(name)
