"""What a search for verdicts sees in a network's place: the same network compiled, or in bfloat16.

Both only find images. What counts as fallen is decided by the network itself, in float32.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from robobench.architectures import Classifier, Prepared
from robobench.losses import input_gradient, margin

if TYPE_CHECKING:
    from robobench.api import IterativeAttack

FEW = 16  # images: below, eager passes cost little and the compiler would make a graph of their own
ALIKE = 1e-3  # of the length of logits or gradients: the most by which a compiled network may differ
BEAR, TRIED = 0.02, 64  # share of a change of the margin that rounding may take; images it is measured on

_rounds: ContextVar[bool] = ContextVar("rounds", default=False)
_twin: ContextVar[tuple[nn.Module, nn.Module] | None] = ContextVar("twin", default=None)


@contextmanager
def in_bfloat16(enabled: bool = True) -> Iterator[None]:
    """Let searches for verdicts inside the block compute in bfloat16, where attack and network bear it.

    A search with stop="never" stays in float32: its images are the result.
    """
    token = _rounds.set(enabled)
    try:
        yield
    finally:
        _rounds.reset(token)


@contextmanager
def stepping_on(model: nn.Module, twin: nn.Module | None) -> Iterator[None]:
    """Let searches for verdicts on a model inside the block take their steps on its `compiled` twin, if there is one.

    Attacks that do not say `compiles` stay on the model, and searches on anything else on that.
    """
    token = _twin.set((model, twin) if twin is not None else None)
    try:
        yield
    finally:
        _twin.reset(token)


def stand_in(attack: IterativeAttack, model: nn.Module, images: Tensor, labels: Tensor) -> nn.Module:
    """Return what the steps of a search for verdicts on these images see, if nothing better the model itself."""
    pair = _twin.get()
    seen = pair[1] if pair is not None and pair[0] is model and attack.compiles else model
    if _rounds.get() and attack.rounds and bears_rounding(attack, model, images[:TRIED], labels[:TRIED]):
        return Rounded(seen)
    return seen


class Rounded(nn.Module):
    """A network under bfloat16 autocast: float32 images in, float32 logits out.

    The linear head of a network that says where it is stays in float32: logits of eight bits tie.
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


def bears_rounding(attack: IterativeAttack, model: nn.Module, images: Tensor, labels: Tensor) -> bool:
    """Say whether bfloat16 tells how margins change inside the ball as float32 does.

    The change is that of one step of length eps up the margin; for half of the images it must be the same to a
    fiftieth. Those of resnet20 networks of ten defenses differ by 0.2 to 0.8 % (medians). A search that cannot see
    what it steers by leaves images that float32 finds.
    """
    grad = input_gradient(lambda adv: margin(model(adv), labels), images)
    ahead = attack.threat.step(images, grad, attack.threat.eps, images)
    with torch.no_grad():
        exact, rounded = (margin(net(ahead), labels) - margin(net(images), labels) for net in (model, Rounded(model)))
    same = ((rounded - exact).abs() <= BEAR * exact.abs()) & (exact != 0)
    return bool(same.float().mean() >= 0.5)


class Compiled(nn.Module):
    """What torch.compile makes of a network, for all batches but the smallest."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.many = net, torch.compile(net, dynamic=True)

    def forward(self, images: Tensor) -> Tensor:
        """Return what the network returns."""
        return cast(Tensor, (self.many if len(images) >= FEW else self.net)(images))


def compiled(model: Prepared, images: Tensor) -> Prepared:
    """Return a twin of a network, of the same tensors, that is compiled; both its graphs are built here.

    Args:
        images: (B, C, H, W) to build them with. B, of 16 and more, must not be C, H or W: the compiler would
            take what is equal here for the same number everywhere.

    Raises:
        ValueError: its answers or gradients are others, as those of a network that draws are.
        Exception: whatever the compiler does.
    """
    images = images.clone()  # a graph made of a slice serves slices only
    twin = copy.copy(model)
    twin._modules = {**model._modules, "net": Compiled(model.net)}

    def look(net: nn.Module) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            logits = net(images)
        return logits, input_gradient(lambda adv: margin(net(adv), logits.argmax(1)), images)

    for ours, its in zip(look(model), look(twin), strict=True):
        if not (ours - its).norm() <= ALIKE * ours.norm():
            raise ValueError("the compiled network answers otherwise")
    return twin
