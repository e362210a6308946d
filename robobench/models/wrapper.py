"""Classifiers as robobench runs them, and the small CIFAR networks that timm does not have.

`Prepared` puts resizing and normalization inside the network, so that images in [0, 1] go in everywhere;
`Classifier` adds the protocol (`features`, `head`) that some defenses need.
"""

from __future__ import annotations

import re
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Triple = tuple[float, float, float]


class PreprocessedModel(nn.Module):
    """A network behind its input preparation: (B, 3, H, W) in [0, 1] -> (B, K) float32 logits.

    Args:
        net: what runs on the prepared images.
        image_size: side the network sees; 0 leaves images as they come.
        interpolation: how images of another side are resized; smaller ones get antialiasing.
        mean, std: of each channel; zeros and ones leave values as they are.
    """

    mean: Tensor
    std: Tensor
    net: nn.Module

    def __init__(
        self,
        net: nn.Module,
        image_size: int = 0,
        interpolation: str = "bilinear",
        mean: Triple = (0.0, 0.0, 0.0),
        std: Triple = (1.0, 1.0, 1.0),
    ) -> None:
        super().__init__()
        self.net, self.image_size, self.interpolation = net, image_size, interpolation
        self.normalizes_input = any(mean) or any(s != 1 for s in std)
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def prepare(self, images: Tensor) -> Tensor:
        """Resize to the network's side, then normalize; both are differentiated through."""
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
        """Turn a parameter's name in the bare network, as strangers' files have it, into its name here."""
        return "net." + key


class Classifier(PreprocessedModel):
    """A network cut before its linear head: `forward` is `head(features(images))`.

    To retrain the head, change `head` in place or assign a new nn.Linear.

    Args:
        net: prepared images -> (B, D), pooled.
        head: (B, D) -> (B, K).
        bare_head: name of the head where the network is one module, as in strangers' weight files.
        renames: (pattern, replacement) pairs that turn other projects' parameter names into ours.
    """

    def __init__(
        self,
        net: nn.Module,
        head: nn.Linear,
        *args: Any,
        bare_head: str = "fc",
        renames: tuple[tuple[str, str], ...] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(net, *args, **kwargs)
        self.head, self.head_name, self.renames = head, bare_head, renames

    def features(self, images: Tensor) -> Tensor:
        """Return (B, D) float32: after global pooling, before the head."""
        return cast(Tensor, self.net(self.prepare(images))).float()

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.features(images))).float()

    def map_key(self, key: str) -> str:
        """Turn a parameter's name in the bare network, timm's or another project's, into its name here."""
        for pattern, replacement in self.renames:
            key = re.sub(pattern, replacement, key)
        head = self.head_name + "."
        return "head." + key.removeprefix(head) if key.startswith(head) else "net." + key


class UserModel(PreprocessedModel):
    """A user's own network, left whole; `features` and `head` appear here where it has them."""

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
