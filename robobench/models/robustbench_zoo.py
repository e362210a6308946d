"""Networks of RobustBench's model zoo: `robustbench:ID`, or `robustbench:cifar10/Linf/ID` where an ID stands twice.

Source: Croce et al., RobustBench, 2021, arXiv:2010.09670; the package robustbench, an extra of robobench. Its weights
are on Google Drive; a file fetched by hand serves as well.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robobench.core.registry import unknown_name
from robobench.data.info import DATASETS
from robobench.errors import RequestError

if TYPE_CHECKING:
    from torch import nn


ZOO_PREFIX = "robustbench:"

NUM_CLASSES = {"imagenet": 1000} | {name: info.num_classes for name, info in DATASETS.items()}


def build_zoo_model(name: str, num_classes: int, pretrained: bool) -> nn.Module:
    """Build a network of the zoo; it takes images in [0, 1] and normalizes them itself.

    Raises:
        RequestError: robustbench is not installed, no such ID, an ID of other data, weights that cannot be fetched.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # robustbench 1.1.1 imports pkg_resources
        try:
            from robustbench.model_zoo import model_dicts
            from robustbench.utils import load_model
        except ImportError as err:
            raise RequestError(
                f"model '{name}' needs the package robustbench ({err}); pip install 'robobench[robustbench]'"
            ) from err
    found = {
        f"{data.value}/{threat.value}/{one}": entry
        for data, threats in model_dicts.items()
        for threat, ids in threats.items()
        for one, entry in ids.items()
    }
    place = _place(name.removeprefix(ZOO_PREFIX), found, num_classes)
    if pretrained:
        return _fetched(name, place, load_model)
    try:
        return found[place]["model"]()  # type: ignore[no-any-return]
    except Exception as err:
        raise RequestError(f"robustbench cannot build '{name}': {type(err).__name__}: {err}") from err


def _place(name: str, found: dict[str, Any], num_classes: int) -> str:
    """Return 'data set/threat/ID' of a name; an ID alone means the one of the data set's class count."""
    fitting = [p for p in found if name in (p, p.split("/")[2])]
    if not fitting:
        raise unknown_name("model of RobustBench", name, {p.split("/")[2] for p in found})
    same = [p for p in fitting if NUM_CLASSES[p.split("/")[0]] == num_classes]
    if not same:
        raise RequestError(
            f"'{ZOO_PREFIX}{fitting[0]}' is for {fitting[0].split('/')[0]}, not for {num_classes} classes"
        )
    if len(same) > 1:
        raise RequestError(f"'{ZOO_PREFIX}{name}' stands for {len(same)} networks; write one of {', '.join(same)}")
    return same[0]


def _fetched(name: str, place: str, load_model: Any) -> nn.Module:
    """Load a network with its weights, from the cache or else from Google Drive."""
    from robobench.core.paths import cache_root

    data, threat, one = place.split("/")
    cache = cache_root() / "robustbench"
    here = (cache / data / threat / f"{one}.pt").exists()
    with tempfile.TemporaryDirectory() as fresh, contextlib.redirect_stdout(sys.stderr):
        try:
            model: nn.Module = load_model(
                one, model_dir=str(cache if here else fresh), dataset=data, threat_model=threat
            )
        except Exception as err:  # no network, a page instead of a file, a pickle that would run code
            why = f"{type(err).__name__}: {' '.join(str(err).split())[:100]}"
            raise RequestError(
                f"weights of '{name}' cannot be loaded ({why}); fetch them from Google Drive by hand and give the "
                f"file: robobench evaluate FILE --model {name}"
            ) from err
        if not here:
            shutil.copytree(Path(fresh), cache, dirs_exist_ok=True)
    return model.eval()
