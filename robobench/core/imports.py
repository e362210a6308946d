"""Import a Python file that is not on the import path; say how optional packages are installed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

# Package -> extra of robobench. On the package index, "robobench" is another project: never advise to install it.
EXTRAS = {
    "torchattacks": "torchattacks",
    "robustbench": "robustbench",
    "ray": "ray",
    "datasets": "datasets",
    "lightning-fabric": "distributed",
    "imagecorruptions-imaug": "corruptions",
    "tensorboard": "tensorboard",
    "mlflow": "mlflow",
    "wandb": "wandb",
    "trackio": "trackio",
    "submitit": "slurm",
}


def install_hint(package: str) -> str:
    """Say how to install an optional package."""
    clone = f"in a clone of robobench: uv sync --extra {EXTRAS[package]}, elsewhere: " if package in EXTRAS else ""
    return f"{clone}pip install {package}"


def import_file(name: str, file: Path) -> Any:
    """Import a file as the module `name` and return the module.

    It is added to `sys.modules`, where dataclasses and pickle look it up, and removed again if the file raises.
    """
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module
