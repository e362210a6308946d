"""Backward pass differentiable approximation (BPDA): the outputs of a model with the input gradient of another.

Source: Athalye et al., "Obfuscated Gradients Give a False Sense of Security", ICML 2018, arXiv:1802.00420, section 4.1.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from robobench.errors import RequestError


class BpdaModel(nn.Module):
    """A model whose input gradient is that of a differentiable replacement. Its outputs are the model's own.

    Args:
        model: images (B, C, H, W) -> logits (B, K).
        replacement: the same for a differentiable model. It may compute the model's own values with a straight-through
            gradient of a part, as in the paper, or approximate the whole model.
    """

    def __init__(self, model: nn.Module, replacement: nn.Module) -> None:
        super().__init__()
        self.model, self.replacement = model, replacement

    def forward(self, images: Tensor) -> Tensor:
        """Return the model's logits (B, K); raises RequestError if the replacement has others."""
        if not (torch.is_grad_enabled() and images.requires_grad):
            return cast(Tensor, self.model(images))
        with torch.no_grad():
            logits = self.model(images)
        smooth = self.replacement(images)
        if smooth.shape != logits.shape:
            raise RequestError(
                f"bpda: the replacement returns {tuple(smooth.shape)}, the model {tuple(logits.shape)}; it must have "
                "the same classes"
            )
        return cast(Tensor, _OtherGradient.apply(smooth, logits))


class _OtherGradient(torch.autograd.Function):
    """The values of the second tensor with the gradient of the first."""

    @staticmethod
    def forward(ctx: Any, smooth: Tensor, logits: Tensor) -> Tensor:
        return logits.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None
