"""Published weights: which models have them, their preprocessing, and whether they are downloaded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from robobench.data.info import Channels, Resize
from robobench.errors import RequestError
from robobench.models.robustbench_zoo import ZOO_PREFIX
from robobench.models.spec import INTERPOLATIONS, TIMM, ModelSpec, is_factory

TORCHVISION_PREFIX = "torchvision.models:"


@dataclass(frozen=True)
class Preprocessing:
    """What published weights expect: number of classes, how images are resized, mean and std on the [0, 1] scale."""

    num_classes: int
    resize: Resize
    mean: Channels
    std: Channels


def published_preprocessing(name: str) -> Preprocessing | None:
    """Return the preprocessing of a model's published weights by timm's or torchvision's config; None if there is none.

    Args:
        name: of a model; our names of timm's networks, timm:NAME and torchvision.models:NAME have configs.
    """
    if name.startswith(TORCHVISION_PREFIX):
        from torchvision.models import get_model_weights

        try:
            published: Any = list(get_model_weights(name.removeprefix(TORCHVISION_PREFIX)))[-1]
            transforms, classes = published.transforms(), len(published.meta["categories"])
            side, before = transforms.crop_size[0], transforms.resize_size[0]
        except (ValueError, AttributeError, IndexError, KeyError):  # no classifier of torchvision
            return None
        kept, mode = min(1.0, side / before), str(transforms.interpolation.value)
        return Preprocessing(classes, _resize(side, kept, mode), tuple(transforms.mean), tuple(transforms.std))
    config = _timm_config(name)
    if config is None:
        return None
    resize = _resize(config.input_size[-1], config.crop_pct or 1.0, config.interpolation)
    return Preprocessing(config.num_classes, resize, config.mean, config.std)


def _resize(side: int, kept: float, interpolation: str) -> Resize:
    return Resize(side, kept, interpolation if interpolation in INTERPOLATIONS else "bilinear")


def _timm_config(name: str) -> Any:
    """Return timm's config of the published weights of a model; None for other models."""
    if name not in TIMM and not name.startswith("timm:"):
        return None
    import timm

    return timm.get_pretrained_cfg(TIMM.get(name) or name.removeprefix("timm:"))


def has_fixed_size(name: str) -> bool:
    """Return whether a timm network, such as a ViT, is built for one image size."""
    return bool(getattr(_timm_config(name), "fixed_input_size", False))


def with_published_preprocessing(spec: ModelSpec, *, keep_size: bool, resolution: int | None = None) -> ModelSpec:
    """Return the spec with the image size, interpolation, mean and std of its published weights.

    Args:
        keep_size: the spec's image size was asked for.
        resolution: side of the images in pixels; if the model does not resize these, the interpolation is kept.
    """
    found = published_preprocessing(spec.name)
    if found is None:
        return spec
    side = spec.image_size if keep_size else found.resize.side
    interpolation = found.resize.interpolation if side != resolution else spec.interpolation
    return replace(spec, image_size=side, interpolation=interpolation, mean=found.mean, std=found.std)


def with_published_weights(spec: ModelSpec, *, keep_size: bool = False, own_data: bool = False) -> ModelSpec:
    """Return the spec with the model's published weights, and with the preprocessing they were trained with.

    The spec of a user factory is returned unchanged.

    Args:
        keep_size: the spec's image size was asked for.
        own_data: the data are the user's, which need not show every class of the weights.

    Raises:
        RequestError: the model has no published weights, or they are for another number of classes.
    """
    if is_factory(spec.name):
        return spec
    if spec.name.startswith(ZOO_PREFIX):
        return replace(spec, pretrained=True)
    if not spec.name.startswith("timm:"):
        raise RequestError(
            f"model '{spec.name}' has no published weights; give a file: evaluate FILE --model {spec.name}"
        )
    config = _timm_config(spec.name)
    if config is None or not (config.hf_hub_id or config.url or config.file):
        raise RequestError(f"timm has no weights for '{spec.name}'; give a file: evaluate FILE --model {spec.name}")
    if config.num_classes != spec.num_classes and not (own_data and config.num_classes > spec.num_classes):
        raise RequestError(
            f"timm's weights of '{spec.name}' have {config.num_classes} classes, the data set has {spec.num_classes}; "
            "give a weights file or a data set that match"
        )
    spec = replace(spec, pretrained=True, stem="native", num_classes=config.num_classes)
    return with_published_preprocessing(spec, keep_size=keep_size)


def check_pretrained(spec: ModelSpec) -> None:
    """Raise RequestError if a spec asks for pretrained weights that do not exist or do not fit its stem."""
    if not spec.pretrained or spec.name.startswith(ZOO_PREFIX):
        return
    config = None
    if spec.name in TIMM or spec.name.startswith("timm:"):
        import timm

        name = TIMM.get(spec.name) or spec.name.removeprefix("timm:")
        if not timm.is_model(name):  # `build_model` raises, with suggestions
            return
        config = timm.get_pretrained_cfg(name)
    if config is None or not (config.hf_hub_id or config.url or config.file):
        raise RequestError(
            f"model '{spec.name}' has no pretrained weights; {', '.join(TIMM)} and most of timm:NAME have them; "
            "use random weights (--set run.pretrained=false)"
        )
    if spec.stem == "cifar":
        raise RequestError(f"pretrained weights of '{spec.name}' need the ImageNet stem; add --set run.stem=imagenet")


def pretrained_is_cached(spec: ModelSpec) -> bool:
    """Return True if timm's pretrained weights of a model are in the Hugging Face cache; works offline."""
    from huggingface_hub import try_to_load_from_cache

    config = _timm_config(spec.name)
    if config is None or not config.hf_hub_id:
        return False
    return any(
        isinstance(try_to_load_from_cache(config.hf_hub_id, f), str) for f in ("model.safetensors", "pytorch_model.bin")
    )
