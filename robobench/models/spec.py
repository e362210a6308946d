"""Model names and `ModelSpec`, which describes a model before it is built. No torch is imported here."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from robobench.core.registry import unknown_name
from robobench.errors import RequestError
from robobench.models.robustbench_zoo import ZOO_PREFIX
from robobench.models.user_factory import read_sources

MODELS = {
    "cnn": "4 convolutions, 0.13 M parameters: for CPUs and small images",
    "resnet20": "CIFAR ResNet of He et al. 2016, 0.27 M parameters",
    "resnet18": "11.2 M parameters (timm)",
    "preactresnet18": "pre-activation ResNet-18 of He et al. 2016, 11.2 M parameters, as in most CIFAR papers",
    "resnet50": "23.5 M parameters (timm)",
    "wrn50": "wide_resnet50_2, 66.9 M parameters (timm): the MACD paper's WideResNet50",
    "wrn-28-10": "wide ResNet of Zagoruyko and Komodakis 2016, 36.5 M parameters, for 32 px",
    "wrn-34-10": "wide ResNet with 34 layers, 46.2 M parameters",
    "timm:NAME": "any timm classifier, such as timm:convnext_atto",
    "robustbench:ID": "a model of RobustBench's zoo, such as robustbench:Wong2020Fast (extra robustbench)",
    "FILE.py:FUNCTION": "your model: FUNCTION(num_classes) -> nn.Module in a file, or package.module:FUNCTION",
}

TIMM = {"resnet18": "resnet18", "resnet50": "resnet50", "wrn50": "wide_resnet50_2"}  # our name -> timm's
STEMS = ("cifar", "imagenet", "native")
INTERPOLATIONS = ("bilinear", "bicubic", "nearest")


@dataclass(frozen=True)
class ModelSpec:
    """Everything that determines an untrained model.

    `stem` applies to timm's ResNets: "cifar" (3x3, stride 1, no pooling) or "imagenet" (7x7, stride 2, pooling).
    Other models have one stem only; for them the value becomes "native".
    """

    name: str
    num_classes: int
    image_size: int = 0  # side in pixels to which images are resized; 0 keeps their size
    stem: str = "native"
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)  # of each channel; the defaults switch normalization off
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    pretrained: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_model_name(self.name)
        for field, allowed in (("stem", STEMS), ("interpolation", INTERPOLATIONS)):
            if getattr(self, field) not in allowed:
                raise unknown_name(field, getattr(self, field), allowed)
        if self.num_classes < 2:
            raise RequestError(f"a classifier needs 2 classes or more, got {self.num_classes}")
        if self.image_size < 0:
            raise RequestError(f"image_size must be >= 0 (0 keeps the size), got {self.image_size}")
        if any(s <= 0 for s in self.std):
            raise RequestError(f"std must be > 0 in every channel, got {self.std}; give the data set's, on [0, 1]")
        if self.name in TIMM:
            stem = "imagenet" if self.stem == "native" else self.stem
        else:
            stem = self.stem if self.name.startswith("timm:") and self.stem == "cifar" else "native"
        object.__setattr__(self, "stem", stem)

    @classmethod
    def from_config(cls, values: Mapping[str, Any]) -> ModelSpec:
        """Return the spec of a trained model from the values of its config.json."""
        plain: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**plain | {"pretrained": False})

    def recipe(self) -> dict[str, Any]:
        """Return the values that enter an artifact's key; for a user factory, with a digest of its source."""
        values = asdict(self)
        if is_factory(self.name):
            values["source"] = hashlib.sha256(b"\0".join(read_sources(self.name))).hexdigest()
        return values


def is_factory(name: str) -> bool:
    """Return True if a name is a user factory: FILE.py:FUNCTION or package.module:FUNCTION."""
    return ":" in name and not name.startswith(("timm:", ZOO_PREFIX))


def brings_own_normalization(name: str) -> bool:
    """Return True if the network itself takes images in [0, 1], so that no normalization is added."""
    return is_factory(name) or name.startswith(ZOO_PREFIX)


def check_model_name(name: str) -> None:
    """Raise RequestError, with a suggestion, unless the name has a known form. Imports no model."""
    source, _, function = name.rpartition(":")
    placeholders = ("timm:NAME", "robustbench:ID", "FILE.py:FUNCTION")
    known = name in MODELS and name not in placeholders
    if known or (source and function and name not in placeholders):
        return
    if name.endswith(".py") or name.endswith(".py:"):
        raise RequestError(f"model '{name}' has no function; write {name.rstrip(':')}:FUNCTION")
    raise unknown_name("model", name, MODELS)
