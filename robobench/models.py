"""Classifiers by name: own small networks, timm's, or the user's. Nothing heavy is imported before `build`."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from robobench import factories, zoo
from robobench.errors import RequestError, one_line
from robobench.registry import unknown
from robobench.weights import load_weights, read_weights

if TYPE_CHECKING:
    from torch import Tensor, nn

    from robobench.architectures import Prepared

__all__ = ["MODELS", "ModelSpec", "build", "load_weights", "missing_protocol", "read_weights"]

MODELS = {
    "cnn": "4 convolutions, 0.13 M parameters: for CPUs and small images",
    "resnet20": "CIFAR ResNet of He et al. 2016, 0.27 M parameters",
    "resnet18": "11.2 M parameters (timm)",
    "preactresnet18": "pre-activation ResNet-18 of He et al. 2016, 11.2 M parameters, as in most CIFAR papers",
    "resnet50": "23.5 M parameters (timm)",
    "wrn50": "wide_resnet50_2, 66.9 M parameters (timm): the MACD paper's WideResNet50",
    "wrn-28-10": "wide ResNet of Zagoruyko and Komodakis 2016, 36.5 M parameters, for 32 px",
    "wrn-34-10": "the same with 34 layers, 46.2 M parameters",
    "timm:NAME": "any classifier of timm, such as timm:convnext_atto",
    "robustbench:ID": "one of RobustBench's zoo, such as robustbench:Wong2020Fast (extra robobench[robustbench])",
    "FILE.py:FUNCTION": "your own: FUNCTION(num_classes) -> nn.Module in a file, or package.module:FUNCTION",
}
TIMM = {"resnet18": "resnet18", "resnet50": "resnet50", "wrn50": "wide_resnet50_2"}
STEMS = ("cifar", "imagenet", "native")
INTERPOLATIONS = ("bilinear", "bicubic", "nearest")


@dataclass(frozen=True)
class ModelSpec:
    """Everything that determines a fresh network.

    `image_size` is the side the network sees (0: images as they come). `stem` "cifar" (3x3, stride 1, no pooling)
    or "imagenet" (7x7, stride 2, pooling) is a choice for timm's ResNets; every other network has its own, and reads
    "native" whatever was asked. `mean` and `std` normalize each channel; a user's factory takes images as they are
    unless they are given.
    """

    name: str
    num_classes: int
    image_size: int = 0
    stem: str = "native"
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    pretrained: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_name(self.name)
        for field, allowed in (("stem", STEMS), ("interpolation", INTERPOLATIONS)):
            if getattr(self, field) not in allowed:
                raise unknown(field, getattr(self, field), allowed)
        if self.num_classes < 2:
            raise RequestError(f"a classifier needs 2 classes or more, got {self.num_classes}")
        if self.image_size < 0:
            raise RequestError(f"image_size must be >= 0 (0: images as they come), got {self.image_size}")
        if any(s <= 0 for s in self.std):
            raise RequestError(f"std must be > 0 in every channel, got {self.std}; give the data set's, on [0, 1]")
        if self.name in TIMM:
            stem = "imagenet" if self.stem == "native" else self.stem
        else:
            stem = self.stem if self.name.startswith("timm:") and self.stem == "cifar" else "native"
        object.__setattr__(self, "stem", stem)

    @classmethod
    def stored(cls, values: Mapping[str, Any]) -> ModelSpec:
        """Return the spec of a network trained before, from what its config.json holds."""
        plain: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**plain | {"pretrained": False})

    def recipe(self) -> dict[str, Any]:
        """Return plain values for an artefact's key; a user's factory adds the digest of its source."""
        values = asdict(self)
        if is_factory(self.name):
            values["source"] = hashlib.sha256(b"\0".join(factories.source_of(self.name))).hexdigest()
        return values


def is_factory(name: str) -> bool:
    """Tell whether a name means a user's function: FILE.py:FUNCTION or package.module:FUNCTION."""
    return ":" in name and not name.startswith(("timm:", zoo.PREFIX))


def normalizes(name: str) -> bool:
    """Tell whether a network takes images in [0, 1] as they are and normalizes them itself."""
    return is_factory(name) or name.startswith(zoo.PREFIX)


def check_name(name: str) -> None:
    """Raise RequestError with a suggestion unless the name has a known form; imports nothing."""
    where, _, function = name.rpartition(":")
    placeholders = ("timm:NAME", "robustbench:ID", "FILE.py:FUNCTION")
    known = name in MODELS and name not in placeholders
    if known or (where and function and name not in placeholders):
        return
    if name.endswith(".py") or name.endswith(".py:"):
        raise RequestError(f"model '{name}' names no function; write {name.rstrip(':')}:FUNCTION")
    raise unknown("model", name, MODELS)


def build(spec: ModelSpec) -> Prepared:
    """Build the network a spec describes: images (B, 3, H, W) in [0, 1] in, float32 logits out.

    The same spec gives the same weights; torch's global generator is left as it was. Every model but a user's factory
    (and the few timm networks without a linear head) has `features` and `head`, and its weights lie channels-last:
    `.contiguous()` them before safetensors.

    Raises:
        RequestError: no such model, a factory that fails, pretrained weights that cannot be had.
    """
    import torch
    from torch import nn

    from robobench.architectures import ARCHITECTURES, OWN_RENAMES, Classifier, Factory
    from robobench.tiny_maps import speed_up_tiny_maps

    inputs = (spec.image_size, spec.interpolation, spec.mean, spec.std)
    check_pretrained(spec)
    model: Prepared
    with _seeded(spec.seed):
        if is_factory(spec.name):
            return Factory(factories.build(spec.name, spec.num_classes), *inputs)
        if spec.name.startswith(zoo.PREFIX):
            return Factory(zoo.build(spec.name, spec.num_classes, spec.pretrained), *inputs)
        if spec.name in ARCHITECTURES:
            net = ARCHITECTURES[spec.name]()
            head = nn.Linear(net.width, spec.num_classes)
            model = Classifier(net, head, *inputs, renames=OWN_RENAMES if hasattr(net, "layers") else OWN_RENAMES[:1])
        else:
            model = _from_timm(spec)
    model.to(memory_format=torch.channels_last)  # measured: 5 to 35 % faster on a CPU, for every network of the table
    speed_up_tiny_maps(model)
    return model


def missing_protocol(model: nn.Module, names: tuple[str, ...]) -> list[str]:
    """Return which of `names` ("features", "head") a model lacks; a head must be an nn.Linear."""
    from torch import nn

    def has(name: str) -> bool:
        value = getattr(model, name, None)
        return isinstance(value, nn.Linear) if name == "head" else callable(value)

    return [name for name in names if not has(name)]


def check_protocol(model: Any, name: str, images: Tensor) -> None:
    """Raise RequestError unless head(features(images)) is model(images), as MACD and RoCL take it to be; eval mode."""
    import torch

    model.eval()
    try:
        with torch.no_grad():
            logits, parts = model(images), model.head(model.features(images))
    except Exception as err:
        raise RequestError(
            f"model '{name}' fails on two images: {one_line(err)}; features(images) must return the (B, D) that head "
            "takes, and head(features(images)) what model(images) does"
        ) from err
    if parts.shape != logits.shape or not torch.allclose(parts, logits, rtol=1e-3, atol=1e-4):
        apart = (
            f"differ by up to {(parts - logits).abs().max():.3g}"
            if parts.shape == logits.shape
            else (f"have shapes {tuple(parts.shape)} and {tuple(logits.shape)}")
        )
        raise RequestError(
            f"model '{name}': head(features(images)) and model(images) {apart}; let features return exactly what head "
            "is given in forward, or choose another model"
        )


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw from torch's CPU generator at `seed`, and put its state back."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also touch the GPUs' generators
        yield


def with_own_weights(spec: ModelSpec) -> ModelSpec:
    """Return the spec of a network that comes with its published weights, and with the normalization they want.

    Raises:
        RequestError: the network has none, or they are for another number of classes.
    """
    if is_factory(spec.name):
        return spec
    if spec.name.startswith(zoo.PREFIX):
        return replace(spec, pretrained=True)
    if not spec.name.startswith("timm:"):
        raise RequestError(f"model '{spec.name}' brings no weights; give a file: evaluate FILE --model {spec.name}")
    import timm

    config = timm.get_pretrained_cfg(spec.name.removeprefix("timm:"))
    if config is None or not (config.hf_hub_id or config.url or config.file):
        raise RequestError(f"timm has no weights for '{spec.name}'; give a file: evaluate FILE --model {spec.name}")
    if config.num_classes != spec.num_classes:
        raise RequestError(
            f"timm's weights of '{spec.name}' have {config.num_classes} classes, the data set has {spec.num_classes}; "
            "give a weights file or a data set that match"
        )
    way = config.interpolation if config.interpolation in INTERPOLATIONS else spec.interpolation
    shape: dict[str, Any] = {"mean": config.mean, "std": config.std, "image_size": config.input_size[-1]}
    return replace(spec, pretrained=True, stem="native", interpolation=way, **shape)


def check_pretrained(spec: ModelSpec) -> None:
    """Raise RequestError where a spec asks for pretrained weights that nobody has."""
    if not spec.pretrained or spec.name.startswith(zoo.PREFIX):
        return
    config = None
    if spec.name in TIMM or spec.name.startswith("timm:"):
        import timm

        name = TIMM.get(spec.name) or spec.name.removeprefix("timm:")
        if not timm.is_model(name):  # building it says so, and suggests others
            return
        config = timm.get_pretrained_cfg(name)
    if config is None or not (config.hf_hub_id or config.url or config.file):
        raise RequestError(
            f"model '{spec.name}' has no pretrained weights; {', '.join(TIMM)} and most of timm:NAME have them; "
            "ask for random ones (--set run.pretrained=false)"
        )
    if spec.stem == "cifar":
        raise RequestError(f"pretrained '{spec.name}' keeps its own stem; --set run.stem=imagenet goes with it")


def pretrained_at_hand(spec: ModelSpec) -> bool:
    """Tell whether timm's pretrained weights of a model are in the Hugging Face cache; asks no network."""
    import timm
    from huggingface_hub import try_to_load_from_cache

    config = timm.get_pretrained_cfg(TIMM.get(spec.name) or spec.name.removeprefix("timm:"))
    if config is None or not config.hf_hub_id:
        return False
    return any(
        isinstance(try_to_load_from_cache(config.hf_hub_id, f), str) for f in ("model.safetensors", "pytorch_model.bin")
    )


# --- timm ---------------------------------------------------------------------------------------


def _from_timm(spec: ModelSpec) -> Prepared:
    """Build a timm network, cut before its head where that is linear."""
    import timm
    from torch import nn

    from robobench.architectures import Classifier, Factory

    name = TIMM.get(spec.name) or spec.name.removeprefix("timm:")
    inputs = (spec.image_size, spec.interpolation, spec.mean, spec.std)
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ";"
        raise RequestError(f"unknown timm model '{name}'{hint} timm.list_models() prints all")
    options: dict[str, Any] = {}
    config = timm.get_pretrained_cfg(name)
    if config is not None and config.fixed_input_size and spec.image_size:
        options["img_size"] = spec.image_size
    try:
        net: Any = timm.create_model(name, pretrained=spec.pretrained, num_classes=spec.num_classes, **options)
    except Exception as err:
        if not spec.pretrained:
            raise RequestError(f"timm cannot build '{name}': {one_line(err)}") from err
        raise RequestError(
            f"pretrained weights for '{spec.name}' cannot be fetched here ({type(err).__name__}); "
            "ask for random weights (--set run.pretrained=false)"
        ) from err
    if spec.stem == "cifar":
        _cifar_stem(net, spec.name)
    head = net.get_classifier()
    if not isinstance(head, nn.Linear):
        return Factory(net, *inputs)
    bare_head = next(key for key, module in net.named_modules() if module is head)
    net.reset_classifier(0)  # pooled features come out; same numbers as forward_head(pre_logits=True)
    renames = ((r"^linear\.", "fc."), (r"\.shortcut\.", ".downsample.")) if hasattr(net, "layer4") else ()
    return Classifier(net, head, *inputs, bare_head=bare_head, renames=renames)


def _cifar_stem(net: Any, name: str) -> None:
    """Give a timm ResNet the stem for 32 px: 3x3, stride 1, no pooling (He et al. 2016, section 4.2)."""
    from torch import nn

    if not (isinstance(getattr(net, "conv1", None), nn.Conv2d) and hasattr(net, "maxpool")):
        raise RequestError(f"model '{name}' has no stem to replace; use --set run.stem=native")
    net.conv1 = nn.Conv2d(3, net.conv1.out_channels, 3, 1, padding=1, bias=False)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    net.maxpool = nn.Identity()
