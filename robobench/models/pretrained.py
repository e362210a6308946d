"""Pretrained weights: which models have them, for how many classes, and whether they are downloaded."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from robobench.errors import RequestError
from robobench.models.robustbench_zoo import ZOO_PREFIX
from robobench.models.spec import INTERPOLATIONS, TIMM, ModelSpec, is_factory


def with_published_weights(spec: ModelSpec) -> ModelSpec:
    """Return the spec with the model's published weights, and with the preprocessing they were trained with.

    The spec of a user factory is returned unchanged.

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
    import timm

    config = timm.get_pretrained_cfg(spec.name.removeprefix("timm:"))
    if config is None or not (config.hf_hub_id or config.url or config.file):
        raise RequestError(f"timm has no weights for '{spec.name}'; give a file: evaluate FILE --model {spec.name}")
    if config.num_classes != spec.num_classes:
        raise RequestError(
            f"timm's weights of '{spec.name}' have {config.num_classes} classes, the data set has {spec.num_classes}; "
            "give a weights file or a data set that match"
        )
    interpolation = config.interpolation if config.interpolation in INTERPOLATIONS else spec.interpolation
    inputs: dict[str, Any] = {"mean": config.mean, "std": config.std, "image_size": config.input_size[-1]}
    return replace(spec, pretrained=True, stem="native", interpolation=interpolation, **inputs)


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
    import timm
    from huggingface_hub import try_to_load_from_cache

    config = timm.get_pretrained_cfg(TIMM.get(spec.name) or spec.name.removeprefix("timm:"))
    if config is None or not config.hf_hub_id:
        return False
    return any(
        isinstance(try_to_load_from_cache(config.hf_hub_id, f), str) for f in ("model.safetensors", "pytorch_model.bin")
    )
