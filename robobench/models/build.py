"""Build a model from its spec: our small networks, timm's, RobustBench's, or a user's."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from robobench.errors import RequestError, one_line
from robobench.models.pretrained import check_pretrained
from robobench.models.robustbench_zoo import ZOO_PREFIX, build_zoo_model
from robobench.models.spec import TIMM, ModelSpec, is_factory
from robobench.models.user_factory import build_user_model

if TYPE_CHECKING:
    from robobench.models.wrapper import PreprocessedModel


def build_model(spec: ModelSpec) -> PreprocessedModel:
    """Build the model of a spec: images (B, 3, H, W) in [0, 1] -> logits (B, K) float32.

    The same spec gives the same weights. The state of torch's global generator does not change.

    Our networks and timm's have `features` and `head`, except the few timm networks without a linear head. Their
    weights are channels-last; call `.contiguous()` before saving as safetensors.

    Raises:
        RequestError: unknown model, a user factory that fails, or pretrained weights that are not available.
    """
    import torch
    from torch import nn

    from robobench.models.networks import ARCHITECTURES, RENAMES
    from robobench.models.small_map_conv import use_small_map_convs
    from robobench.models.wrapper import Classifier, UserModel

    inputs = (spec.image_size, spec.interpolation, spec.mean, spec.std)
    check_pretrained(spec)
    model: PreprocessedModel
    with _seeded(spec.seed):
        if is_factory(spec.name):
            return UserModel(build_user_model(spec.name, spec.num_classes), *inputs)
        if spec.name.startswith(ZOO_PREFIX):
            return UserModel(build_zoo_model(spec.name, spec.num_classes, spec.pretrained), *inputs)
        if spec.name in ARCHITECTURES:
            net = ARCHITECTURES[spec.name]()
            head = nn.Linear(net.width, spec.num_classes)
            model = Classifier(net, head, *inputs, renames=RENAMES if hasattr(net, "layers") else RENAMES[:1])
        else:
            model = _build_timm_model(spec)
    model.to(memory_format=torch.channels_last)  # measured: 5 to 35 % faster on CPUs, every network
    use_small_map_convs(model)
    return model


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch's CPU generator inside the block; restore its state afterward."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed the GPUs
        yield


def _build_timm_model(spec: ModelSpec) -> PreprocessedModel:
    """Build a timm model, split into features and head if its head is linear."""
    import timm
    from torch import nn

    from robobench.models.wrapper import Classifier, UserModel

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
            f"pretrained weights for '{spec.name}' cannot be downloaded ({type(err).__name__}); "
            "use random weights (--set run.pretrained=false)"
        ) from err
    if spec.stem == "cifar":
        _use_cifar_stem(net, spec.name)
    head = net.get_classifier()
    if not isinstance(head, nn.Linear):
        return UserModel(net, *inputs)
    head_name = next(key for key, module in net.named_modules() if module is head)
    net.reset_classifier(0)  # the output is now forward_head(pre_logits=True): pooled features
    renames = ((r"^linear\.", "fc."), (r"\.shortcut\.", ".downsample.")) if hasattr(net, "layer4") else ()
    return Classifier(net, head, *inputs, head_name=head_name, renames=renames)


def _use_cifar_stem(net: Any, name: str) -> None:
    """Give a timm ResNet the stem for 32 px: 3x3, stride 1, no pooling (He et al., CVPR 2016, section 4.2)."""
    from torch import nn

    if not (isinstance(getattr(net, "conv1", None), nn.Conv2d) and hasattr(net, "maxpool")):
        raise RequestError(f"model '{name}' has no stem to replace; use --set run.stem=native")
    net.conv1 = nn.Conv2d(3, net.conv1.out_channels, 3, 1, padding=1, bias=False)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    net.maxpool = nn.Identity()
