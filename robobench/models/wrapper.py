"""Wrappers that put resizing and normalization inside the model, so that every model takes images in [0, 1].

`Classifier` adds `features` and `head`, which some defenses need.
"""

from __future__ import annotations

import re
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Channels = tuple[float, float, float]


class PreprocessedModel(nn.Module):
    """A network with input preprocessing: (B, 3, H, W) in [0, 1] -> (B, K) float32 logits.

    Args:
        net: maps preprocessed images to logits.
        image_size: side in pixels to which images are resized; 0 keeps their size.
        interpolation: "bilinear", "bicubic" or "nearest". Downsampling is antialiased, except "nearest".
        mean, std: of each channel, on the [0, 1] scale; zeros and ones switch normalization off.
    """

    mean: Tensor
    std: Tensor
    net: nn.Module

    def __init__(
        self,
        net: nn.Module,
        image_size: int = 0,
        interpolation: str = "bilinear",
        mean: Channels = (0.0, 0.0, 0.0),
        std: Channels = (1.0, 1.0, 1.0),
    ) -> None:
        super().__init__()
        self.net, self.image_size, self.interpolation = net, image_size, interpolation
        self.normalizes_input = any(mean) or any(s != 1 for s in std)
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def prepare(self, images: Tensor) -> Tensor:
        """Resize and normalize images; differentiable."""
        size = self.image_size
        if size and images.shape[-2:] != (size, size):
            smooth = self.interpolation != "nearest"
            images = F.interpolate(
                images,
                (size, size),
                mode=self.interpolation,
                align_corners=False if smooth else None,
                antialias=smooth and max(images.shape[-2:]) > size,
            )
        return (images - self.mean) / self.std if self.normalizes_input else images

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.net(self.prepare(images))).float()

    def map_key(self, key: str) -> str:
        """Map a parameter name of the unwrapped network to its name in this wrapper."""
        return "net." + key


class Classifier(PreprocessedModel):
    """A feature extractor and a linear head: `forward` is `head(features(images))`.

    To retrain the head, change `head` in place or assign a new nn.Linear.

    Args:
        net: maps preprocessed images to pooled features (B, D).
        head: maps features (B, D) to logits (B, K).
        head_name: name of the head in the unwrapped network, as in other projects' weight files.
        renames: (regular expression, replacement) pairs that map other projects' parameter names to ours.
    """

    def __init__(
        self,
        net: nn.Module,
        head: nn.Linear,
        *args: Any,
        head_name: str = "fc",
        renames: tuple[tuple[str, str], ...] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(net, *args, **kwargs)
        self.head, self.head_name, self.renames = head, head_name, renames

    def features(self, images: Tensor) -> Tensor:
        """Return features (B, D) float32: after global pooling, before the head."""
        return cast(Tensor, self.net(self.prepare(images))).float()

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.features(images))).float()

    def map_key(self, key: str) -> str:
        """Map a parameter name of the unwrapped network (timm's or another project's) to its name in this wrapper."""
        for pattern, replacement in self.renames:
            key = re.sub(pattern, replacement, key)
        head = self.head_name + "."
        return "head." + key.removeprefix(head) if key.startswith(head) else "net." + key


class UserModel(PreprocessedModel):
    """A user's, RobustBench's or timm's network, not split; has `features` and `head` if the network has them."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            net = self.__dict__.get("_modules", {}).get("net")
            if name == "head" and isinstance(getattr(net, "head", None), nn.Linear):
                return net.head
            if name == "features" and callable(getattr(net, "features", None)):
                return lambda images: net.features(self.prepare(images)).float()
            raise
