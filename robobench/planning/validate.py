"""Checks of flags that need neither data nor plug-ins. No torch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from importlib.util import find_spec

from robobench.core.imports import install_hint
from robobench.core.registry import unknown_name
from robobench.errors import RequestError
from robobench.planning.request import ExperimentConfig
from robobench.results.records import Protocol

EXECUTORS = ("serial", "ray", "slurm")
# Options of sbatch that decide how tasks become jobs.
RESERVED_OPTIONS = (
    "array",
    "dependency",
    "job-name",
    "output",
    "error",
    "signal",
    "ntasks",
    "nodes",
    "wrap",
    "requeue",
)
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
    """Raise RequestError if a flag does not fit the executor, or its package is not installed."""
    executor, share, address = request.executor, request.gpus_per_task, request.address
    if executor not in EXECUTORS:
        raise unknown_name("executor", executor, EXECUTORS)
    owners = (("address", address, "ray"), ("gpus-per-task", share, "ray"), ("slurm", request.slurm or None, "slurm"))
    for flag, value, owner in owners:
        if value is not None and executor != owner:
            shown = ",".join(request.slurm) if flag == "slurm" else value
            raise RequestError(f"--{flag} {shown} belongs to --executor {owner}; add that, or leave it out")
    if executor == "serial":
        return
    name, package = {"ray": ("Ray", "ray"), "slurm": ("submitit", "submitit")}[executor]
    if getattr(find_spec(package), "origin", None) is None:
        raise RequestError(f"--executor {executor} needs {name}; {install_hint(package)}")
    if request.overwrite:
        raise RequestError(f"--overwrite does not work with --executor {executor}; use a new folder instead: --out DIR")
    if request.devices > 1:
        raise RequestError(
            f"--devices {request.devices} does not work with --executor {executor}, whose tasks take one device each"
        )
    parse_slurm_options(request.slurm)
    if address is not None and address != "auto" and not re.fullmatch(r"[^\s/]+:\d{1,5}", address):
        raise RequestError(f"--address '{address}' is neither auto nor HOST:PORT; leave it out to start a local Ray")
    if share is not None and not device.startswith("cuda"):
        raise RequestError(f"--gpus-per-task {share:g} needs --device cuda, and this run is on {device}; leave it out")
    if share is not None and not 0 < share <= 1:
        raise RequestError(f"--gpus-per-task must be above 0 and at most 1 (0.5: two tasks per GPU), got {share:g}")


def parse_slurm_options(texts: Iterable[str]) -> dict[str, str]:
    """Return the options of --slurm NAME=VALUE[,NAME=VALUE], which are sbatch's; raises RequestError."""
    options: dict[str, str] = {}
    for part in (part for text in texts for part in re.split(r",(?=[\w-]+=)", text)):
        name, equals, value = part.partition("=")
        name = name.strip().lstrip("-").replace("_", "-")
        if not (equals and name and value):
            raise RequestError(f"--slurm '{part}' is no NAME=VALUE of sbatch, such as partition=gpu,cpus-per-task=4")
        if name in RESERVED_OPTIONS:
            raise RequestError(f"--slurm {name} is set by robobench; leave it out")
        options[name] = value
    if options.get("cluster", "local") != "local":
        raise RequestError(f"--slurm cluster={options['cluster']}: only cluster=local, processes here to try it out")
    for name in ("array-parallelism", "cpus-per-task"):
        if not options.get(name, "1").isdigit():
            raise RequestError(f"--slurm {name}={options[name]} must be a whole number")
    return options
