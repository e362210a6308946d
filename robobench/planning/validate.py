"""Checks of flags that need neither data nor plug-ins. No torch."""

from __future__ import annotations

import math
import re
from importlib.util import find_spec

from robobench.core.imports import install_hint
from robobench.core.registry import unknown_name
from robobench.errors import RequestError
from robobench.planning.request import ExperimentConfig
from robobench.results.records import Protocol

EXECUTORS = ("serial", "ray")
PROTOCOLS: dict[str, tuple[Protocol, ...]] = {
    "transfer": ("transfer",),
    "white-box": ("white-box",),
    "both": ("white-box", "transfer"),
}


def check_flags(request: ExperimentConfig) -> None:
    """Raise RequestError for a flag with an impossible value."""
    if request.protocol not in PROTOCOLS:
        raise unknown_name("protocol", request.protocol, PROTOCOLS)
    for name, value in (("examples", request.examples), ("batch-size", request.batch_size)):
        if value is not None and value < 1:
            raise RequestError(f"--{name} must be at least 1, got {value}")
    if request.until is not None and not 0 < request.until < 50:
        raise RequestError(
            f"--until must be above 0 and below 50 percentage points, such as 1.0; got {request.until:g}"
        )
    if request.epochs is not None and request.epochs < 0:
        raise RequestError(f"--epochs must be at least 0, got {request.epochs}")
    if not 0 <= request.checkpoint_minutes < math.inf:
        raise RequestError(f"--checkpoint-minutes must be 0 or more, got {request.checkpoint_minutes}")
    if request.threads is not None and request.threads < 1:
        raise RequestError(f"--threads must be at least 1, got {request.threads}")


def check_executor(request: ExperimentConfig, device: str) -> None:
    """Raise RequestError if a flag does not fit the executor, or Ray is not installed."""
    if request.executor not in EXECUTORS:
        raise unknown_name("executor", request.executor, EXECUTORS)
    share, address = request.gpus_per_task, request.address
    if request.executor == "serial":
        for flag, value in (("address", address), ("gpus-per-task", share)):
            if value is not None:
                raise RequestError(f"--{flag} {value} belongs to --executor ray; add that, or leave it out")
        return
    if getattr(find_spec("ray"), "origin", None) is None:
        raise RequestError(f"--executor ray needs Ray; {install_hint('ray')}")
    if request.overwrite:
        raise RequestError("--overwrite does not work with --executor ray; use a new folder instead: --out DIR")
    if request.devices > 1:
        raise RequestError(
            f"--devices {request.devices} does not work with --executor ray, whose tasks take one device each"
        )
    if address is not None and address != "auto" and not re.fullmatch(r"[^\s/]+:\d{1,5}", address):
        raise RequestError(f"--address '{address}' is neither auto nor HOST:PORT; leave it out to start a local Ray")
    if share is not None and not device.startswith("cuda"):
        raise RequestError(f"--gpus-per-task {share:g} needs --device cuda, and this run is on {device}; leave it out")
    if share is not None and not 0 < share <= 1:
        raise RequestError(f"--gpus-per-task must be above 0 and at most 1 (0.5: two tasks per GPU), got {share:g}")
