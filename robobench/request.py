"""What a person asked, as typed: the request, a preset's run values, and reading `--set` texts. No torch."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from robobench.errors import RequestError
from robobench.registry import unknown

__all__ = ["Request", "RunValues"]

MIN_HELD_OUT = 1000  # fewer images tell epochs apart by chance alone
EXECUTORS = ("serial", "ray")
SELECTIONS = ("last", "best", "both")
CHUNK = 256  # images evaluated together, where a preset does not say: the unit of work, resume and sharding


@dataclass(frozen=True, kw_only=True)
class RunValues:
    """What a preset's "run" section holds; `--set run.FIELD=VALUE` changes one."""

    image_size: int = 32  # side the network sees
    attack_resolution: int = 32  # side of the images that are attacked; resized inside the model if it differs
    stem: str = "cifar"  # of timm's ResNets: cifar (3x3, stride 1), imagenet (7x7, pooling), native
    interpolation: str = "bilinear"  # bilinear | bicubic | nearest: how images are resized inside the model
    pretrained: bool = False  # start from timm's ImageNet weights
    train_images: int = 0  # first N training images; 0: all that are not held out
    held_out: int = 0  # last N training images, kept from training: PGD accuracy on them picks the best epoch
    selection: str = "last"  # last | best | both: which epoch's weights are attacked
    examples: int = 0  # first N test images; 0: all
    attacks: tuple[str, ...] = ("pgd", "fgsm")
    l2_eps: tuple[str, ...] = ()  # radii of attacks on L2, where the preset has its own
    source: str = "standard"  # whose seed-0 network the transfer examples are made on
    control: bool = True  # evaluate the source's defense of another seed beside the rest
    chunk: int = CHUNK  # images evaluated together
    sync_batchnorm: bool = False  # BatchNorm over the images of all GPUs, not of each

    def __post_init__(self) -> None:
        for name, least in (("chunk", 1), ("examples", 0), ("train_images", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.held_out and self.held_out < MIN_HELD_OUT:
            raise ValueError(f"held_out must be 0 or at least {MIN_HELD_OUT}, got {self.held_out}")
        if self.selection not in SELECTIONS:
            raise ValueError(f"selection must be one of {', '.join(SELECTIONS)}, got '{self.selection}'")
        if self.selection != "last" and not self.held_out:
            raise ValueError(
                f"selection '{self.selection}' needs images to select on; set run.held_out={MIN_HELD_OUT} or more"
            )


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a person typed, as the command line's flags."""

    defenses: tuple[str, ...] = ()
    dataset: str = "digits"
    model: str = "cnn"
    preset: str | None = None
    seeds: tuple[int, ...] = (0,)
    device: str = "auto"
    precision: str = "auto"
    compile: str = "auto"  # auto | on | off
    threads: int | None = None
    devices: int = 1
    attacks: tuple[str, ...] | None = None
    norm: str = "Linf"
    eps: tuple[str, ...] = ()
    train_norm: str | None = None
    train_eps: str | None = None
    protocol: str = "both"
    examples: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    sets: tuple[str, ...] = ()
    teachers: tuple[str, ...] = ()  # ROLE=FILE, ROLE=MODEL=FILE or ROLE=FOLDER of a trained network
    plugins: tuple[str, ...] = ()
    data_dir: Path | None = None
    out: Path = Path("runs")
    checkpoint_every: float = 5.0  # minutes between two saves of a training
    fresh: bool = False  # what the store has of this request is set aside, not used
    executor: str = "serial"  # or ray: every artefact a task, over cores, GPUs and machines
    address: str | None = None  # of a running Ray, auto or HOST:PORT; None: a local one is started
    gpus_per_task: float | None = None  # None: 1 where the device is a GPU
    # of `evaluate`: a network that somebody else trained
    external: bool = False
    weights: Path | None = None
    source: str | None = None  # MODEL or MODEL=WEIGHTS
    mean: str | None = None
    std: str | None = None


def check_executor(request: Request, device: str) -> None:
    """Raise RequestError where the work of a request cannot be sent where it says."""
    if request.executor not in EXECUTORS:
        raise unknown("executor", request.executor, EXECUTORS)
    share, place = request.gpus_per_task, request.address
    if request.executor == "serial":
        for flag, value in (("address", place), ("gpus-per-task", share)):
            if value is not None:
                raise RequestError(f"--{flag} {value} belongs to --executor ray; add that, or leave it out")
        return
    if getattr(find_spec("ray"), "origin", None) is None:
        raise RequestError("--executor ray needs Ray; install it with: pip install 'robobench[ray]'")
    if request.fresh:
        raise RequestError("--fresh does not go with --executor ray; start over with a new folder: --out DIR")
    if request.devices > 1:
        raise RequestError(
            f"--devices {request.devices} does not go with --executor ray, whose tasks take a device each"
        )
    if place is not None and place != "auto" and not re.fullmatch(r"[^\s/]+:\d{1,5}", place):
        raise RequestError(f"--address '{place}' is neither auto nor HOST:PORT; leave it out to start a local Ray")
    if share is not None and not device.startswith("cuda"):
        raise RequestError(f"--gpus-per-task {share:g} needs --device cuda, and this run is on {device}; leave it out")
    if share is not None and not 0 < share <= 1:
        raise RequestError(f"--gpus-per-task must be above 0 and at most 1 (0.5: two tasks a GPU), got {share:g}")


# --- values -------------------------------------------------------------------------------------


def parse_value(text: str, kind: Any, what: str) -> Any:
    """Read a `--set` value as the field's type; raises RequestError."""
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if types.NoneType in options and text.lower() == "none":
        return None
    kind = next(option for option in options if option is not types.NoneType)
    try:
        if kind is bool:
            return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
        if kind is int:
            return int(text)
        if kind is float:
            return float(Fraction(text))
        if typing.get_origin(kind) is tuple:
            return tuple(parse_value(part, typing.get_args(kind)[0], what) for part in text.split(",") if part)
        return text
    except (KeyError, ValueError, ZeroDivisionError):
        name = getattr(kind, "__name__", str(kind))
        raise RequestError(f"{what} takes a value of type {name}, got '{text}'") from None


def typed(cls: type, values: Mapping[str, str], who: str) -> dict[str, Any]:
    """Turn `--set` texts into values of a config class's fields; raises RequestError."""
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    out = {}
    for name, text in values.items():
        if name not in names:
            raise unknown(f"field of {who}", name, names)
        out[name] = parse_value(text, hints[name], f"{who}.{name}")
    return out


def make(cls: type, values: Mapping[str, Any], who: str) -> Any:
    """Build a config, turning its own complaint into a RequestError."""
    try:
        return cls(**values)
    except (ValueError, TypeError) as err:
        raise RequestError(f"{who}: {err}") from None


def parse_sets(sets: Iterable[str]) -> dict[str, dict[str, str]]:
    """Read NAME.FIELD=VALUE settings into {name: {field: text}}; raises RequestError."""
    out: dict[str, dict[str, str]] = {}
    for text in sets:
        left, equals, value = text.partition("=")
        name, dot, field_name = left.rpartition(".")
        if not (equals and dot and name and field_name):
            raise RequestError(f"--set '{text}' is not NAME.FIELD=VALUE, such as trades.beta=3")
        out.setdefault(name.strip(), {})[field_name.strip()] = value.strip()
    return out
