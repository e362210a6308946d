"""Context managers that change a module's mode or gradients and restore them, also after an error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def eval_mode(*modules: nn.Module) -> Iterator[None]:
    """Put modules into eval mode; afterwards restore the mode of every submodule."""
    modes = [(m, m.training) for module in modules for m in module.modules()]
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def no_parameter_gradients(*modules: nn.Module) -> Iterator[None]:
    """Turn off parameter gradients. A compiled module would otherwise compute them even if they are not used.

    Weights that are computed from others, as during weight perturbation, stay as they are.
    """
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad and p.is_leaf]
    try:
        for p in parameters:
            p.requires_grad_(False)
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)


@contextmanager
def attack_mode(*modules: nn.Module) -> Iterator[None]:
    """Use eval mode without parameter gradients: an attack needs gradients of the images only."""
    with eval_mode(*modules), no_parameter_gradients(*modules):
        yield
