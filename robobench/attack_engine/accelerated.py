"""Faster copies of the model (torch.compile or bfloat16) for an attack's gradient steps.

Success is always confirmed with the original float32 model.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn

from robobench.attack_engine.gradient import input_gradient
from robobench.attack_engine.options import AttackOptions
from robobench.attack_engine.state import SteppedAttack
from robobench.core.losses import margin
from robobench.models.wrapper import Classifier, PreprocessedModel

MIN_COMPILED_BATCH = 16  # images; smaller batches run uncompiled, since they would need a graph of their own
COMPILE_TOLERANCE = 1e-3  # largest relative difference (L2 norm) of logits or gradients from the uncompiled model
BF16_TOLERANCE = 0.02  # largest relative difference of a margin change in bfloat16
BF16_CHECK_IMAGES = 64  # images on which bfloat16 is compared with float32


def select_search_model(
    attack: SteppedAttack, model: nn.Module, images: Tensor, labels: Tensor, options: AttackOptions
) -> nn.Module:
    """Return the model for an attack's gradient steps: the fastest that options, attack and model allow."""
    chosen, checked = model, slice(BF16_CHECK_IMAGES)
    if options.compiled is not None and options.compiled[0] is model and attack.supports_compile:
        chosen = options.compiled[1]
    if options.bf16_search and attack.supports_bf16_search:
        return Bf16Model(chosen) if bf16_is_faithful(attack, model, images[checked], labels[checked]) else chosen
    return chosen


class Bf16Model(nn.Module):
    """A model under bfloat16 autocast: float32 images in, float32 logits out.

    The linear head of a `Classifier` stays in float32, because bfloat16 logits are often equal.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K)."""
        with torch.autocast(images.device.type, torch.bfloat16):
            if not isinstance(self.model, Classifier):
                return cast(Tensor, self.model(images)).float()
            features = self.model.features(images)
        return cast(Tensor, self.model.head(features))


def bf16_is_faithful(attack: SteppedAttack, model: nn.Module, images: Tensor, labels: Tensor) -> bool:
    """Return whether bfloat16 is accurate enough for the attack.

    After one margin-gradient step of size eps, the change of the margin must agree with float32 within 2 % on at least
    half of the images. For resnet20 models of ten defenses the medians are 0.2 to 0.8 %.
    """
    grad = input_gradient(lambda adv: margin(model(adv), labels), images)
    ahead = attack.threat.step(images, grad, attack.threat.eps, images)
    with torch.no_grad():
        exact, rounded = (margin(m(ahead), labels) - margin(m(images), labels) for m in (model, Bf16Model(model)))
    same = ((rounded - exact).abs() <= BF16_TOLERANCE * exact.abs()) & (exact != 0)
    return bool(same.float().mean() >= 0.5)


class CompiledModel(nn.Module):
    """A model compiled by torch.compile; small batches run uncompiled."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.graph = net, torch.compile(net, dynamic=True)

    def forward(self, images: Tensor) -> Tensor:
        """Return the model's outputs."""
        return cast(Tensor, (self.graph if len(images) >= MIN_COMPILED_BATCH else self.net)(images))


def compile_for_search(model: PreprocessedModel, images: Tensor) -> PreprocessedModel:
    """Return a compiled copy of a model that shares its tensors. The forward and the backward graph are built here.

    Args:
        images: (B, C, H, W) to build the graphs with; B at least 16 and different from C, H and W. The compiler would
            treat equal sizes as the same variable.

    Raises:
        ValueError: compiled and uncompiled outputs or gradients differ, as they do for a model that draws random
            numbers.
        Exception: any error of the compiler.
    """
    images = images.clone()  # a graph that was built with a slice works with slices only
    compiled = copy.copy(model)
    compiled._modules = {**model._modules, "net": CompiledModel(model.net)}

    def logits_and_gradient(net: nn.Module) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            logits = net(images)
        return logits, input_gradient(lambda adv: margin(net(adv), logits.argmax(1)), images)

    for eager, fast in zip(logits_and_gradient(model), logits_and_gradient(compiled), strict=True):
        if not (eager - fast).norm() <= COMPILE_TOLERANCE * eager.norm():
            raise ValueError("compiled and eager outputs differ")
    return compiled
