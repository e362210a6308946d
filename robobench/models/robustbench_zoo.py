"""Models of RobustBench's zoo: `robustbench:ID`, or `robustbench:cifar10/Linf/ID` if an ID exists more than once.

Source: Croce et al., RobustBench, 2021, arXiv:2010.09670; package robustbench, an extra of robobench. The weights are
on Google Drive. A weights file downloaded by hand can be given instead.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robobench.core.imports import install_hint
from robobench.core.registry import unknown_name
from robobench.data.info import DATASETS
from robobench.errors import RequestError

if TYPE_CHECKING:
    from torch import nn


ZOO_PREFIX = "robustbench:"

NUM_CLASSES = {name: info.num_classes for name, info in DATASETS.items()}


def build_zoo_model(name: str, num_classes: int, pretrained: bool) -> nn.Module:
    """Build a model of the zoo. It takes images in [0, 1] and normalizes them itself.

    Args:
        num_classes: of the data set.
        pretrained: load the published weights; download them if they are not in the cache.

    Raises:
        RequestError: robustbench is not installed, the ID is unknown, the model is for another number of classes, or
            its weights cannot be downloaded.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # robustbench 1.1.1 imports pkg_resources
        try:
            _provide_autoattack()
            from robustbench.model_zoo import model_dicts
            from robustbench.utils import load_model
        except ImportError as err:
            raise RequestError(
                f"model '{name}' needs the package robustbench ({err}); {install_hint('robustbench')}"
            ) from err
    zoo = {
        f"{dataset.value}/{threat.value}/{model_id}": entry
        for dataset, threats in model_dicts.items()
        for threat, ids in threats.items()
        for model_id, entry in ids.items()
    }
    path = _find_model(name.removeprefix(ZOO_PREFIX), list(zoo), num_classes)
    if pretrained:
        return _load_pretrained(name, path, load_model)
    try:
        return zoo[path]["model"]()  # type: ignore[no-any-return]
    except Exception as err:
        raise RequestError(f"robustbench cannot build '{name}': {type(err).__name__}: {err}") from err


def _provide_autoattack() -> None:
    """Let robustbench import `autoattack`: the package that it requires, pyautoattack, has another module name."""
    if importlib.util.find_spec("autoattack") is None:
        for name in ("", ".state"):
            sys.modules[f"autoattack{name}"] = importlib.import_module(f"pyautoattack{name}")


def _find_model(name: str, paths: list[str], num_classes: int) -> str:
    """Return the path 'data set/threat/ID' of a name; a plain ID is resolved by the number of classes."""
    matches = [path for path in paths if name in (path, path.split("/")[2])]
    if not matches:
        raise unknown_name("model of RobustBench", name, {path.split("/")[2] for path in paths})
    fitting = [path for path in matches if NUM_CLASSES[path.split("/")[0]] == num_classes]
    if not fitting:
        raise RequestError(
            f"'{ZOO_PREFIX}{matches[0]}' is for {matches[0].split('/')[0]}, not for {num_classes} classes"
        )
    if len(fitting) > 1:
        raise RequestError(f"'{ZOO_PREFIX}{name}' means {len(fitting)} models; write one of {', '.join(fitting)}")
    return fitting[0]


def _load_pretrained(name: str, path: str, load_model: Any) -> nn.Module:
    """Load a model with its weights from the cache, or download them from Google Drive."""
    from robobench.core.paths import cache_root

    dataset, threat, model_id = path.split("/")
    cache = cache_root() / "robustbench"
    cached = (cache / dataset / threat / f"{model_id}.pt").exists()
    with tempfile.TemporaryDirectory() as download, contextlib.redirect_stdout(sys.stderr):
        folder = str(cache) if cached else download
        try:
            model: nn.Module = load_model(model_id, model_dir=folder, dataset=dataset, threat_model=threat)
        except Exception as err:  # no internet, a web page instead of the file, a pickle that would run code
            why = f"{type(err).__name__}: {' '.join(str(err).split())[:100]}"
            raise RequestError(
                f"weights of '{name}' cannot be loaded ({why}); download them from Google Drive by hand and give the "
                f"file: robobench evaluate FILE --model {name}"
            ) from err
        if not cached:
            shutil.copytree(Path(download), cache, dirs_exist_ok=True)
    return model.eval()
