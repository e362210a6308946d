"""Models whose outputs are random: expectation over transformation (EoT) for attacks, votes for verdicts.

Source: Athalye et al., "Obfuscated Gradients Give a False Sense of Security", ICML 2018, arXiv:1802.00420, section 4.2.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from robobench.attack_engine.bpda import BpdaModel
from robobench.core.losses import is_misclassified
from robobench.core.randomness import Randomness


class RandomizedModel(nn.Module):
    """A model with random outputs, as attacks see it: a call returns the mean of the logits over `eot` passes.

    `loss_and_input_grad` averages the loss and its gradient over the passes instead, as auto-attack does.
    """

    def __init__(self, model: nn.Module, randomness: Randomness) -> None:
        super().__init__()
        self.model, self.randomness = model, randomness

    def forward(self, images: Tensor) -> Tensor:
        """Return the mean logits (B, K)."""
        passes = [cast(Tensor, self.model(images)) for _ in range(self.randomness.eot)]
        return torch.stack(passes).mean(0)

    @property
    def follows_mean(self) -> bool:
        """Whether votes are unlikely to find an image misclassified that the mean of the logits does not."""
        return self.randomness.passes > 1 and 2 * self.randomness.wrong > self.randomness.passes

    def misclassifies(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return whether enough fresh passes are wrong: (B, C, H, W), (B,) -> (B,) bool."""
        count = torch.zeros_like(labels)
        with torch.no_grad():
            for _ in range(self.randomness.passes):
                count += is_misclassified(self.model(images), labels)
        return count >= self.randomness.wrong


def adapt_model(model: nn.Module, replacement: nn.Module | None, randomness: Randomness | None) -> nn.Module:
    """Return a model as attacks see it: with the gradient of a replacement (BPDA), and averaged and judged by votes."""
    if replacement is not None:
        model = BpdaModel(model, replacement)
    return model if randomness is None else RandomizedModel(model, randomness)


def predicts_wrong(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return the verdict of one pass, or of the votes of a `RandomizedModel`: (B, C, H, W), (B,) -> (B,) bool."""
    if isinstance(model, RandomizedModel):
        return model.misclassifies(images, labels)
    with torch.no_grad():
        return is_misclassified(model(images), labels)
