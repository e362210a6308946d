"""Wrappers that put resizing and normalization inside the model, so that every model takes images in [0, 1].

`Classifier` adds `features` and `head`, which some defenses need.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
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
        self.is_backbone_frozen = False
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

    def freeze_backbone(self) -> None:
        """Train the head only: all other parameters and BatchNorm's statistics stay as they are.

        Raises:
            ValueError: the model has no linear head.
        """
        if not isinstance(getattr(self, "head", None), nn.Linear):
            raise ValueError("freeze=backbone needs a model with a linear head; leave it out, or choose another model")
        self.requires_grad_(False)
        self.head.requires_grad_(True)
        self.is_backbone_frozen = True
        self.train(self.training)

    def train(self, mode: bool = True) -> PreprocessedModel:
        """Set the mode. A frozen backbone stays in eval mode."""
        super().train(mode)
        if self.is_backbone_frozen:
            self.net.eval()
        return self

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
    """A user's, RobustBench's, torchvision's or timm's network, not split; see `extract_logits` for its outputs.

    It runs in the precision of its parameters, and gets a copy of the images, which it may change in place. It has
    `features` and `head` if the network has them.
    """

    def __init__(self, net: nn.Module, *args: Any, **kwargs: Any) -> None:
        super().__init__(net, *args, **kwargs)
        self.dtype = next((p.dtype for p in net.parameters() if p.is_floating_point()), torch.float32)

    def prepare(self, images: Tensor) -> Tensor:
        """Copy, resize, normalize and convert images; differentiable."""
        prepared = super().prepare(images)
        return (prepared.clone() if prepared is images else prepared).to(self.dtype)

    def forward(self, images: Tensor) -> Tensor:
        return extract_logits(self.net(self.prepare(images)))[0].float()

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


def extract_logits(output: Any) -> tuple[Tensor, str]:
    """Return the logits (B, K) in a model's output, and where they were; "" if the output is the logits.

    Taken are `.logits`, as of Hugging Face's models, the entry "logits" of a dictionary or else its first, and the
    first entry of a tuple or list. Dimensions of size 1 after the second are removed.

    Raises:
        TypeError: there is no tensor.
    """
    where = ""
    if not isinstance(output, Tensor):
        if isinstance(getattr(output, "logits", None), Tensor):
            where, found = ".logits", output.logits
        elif isinstance(output, Mapping) and output:
            key = "logits" if "logits" in output else next(iter(output))
            where, found = f"the entry '{key}'", output[key]
        elif isinstance(output, (tuple, list)) and output:
            where, found = "the first entry", output[0]
        else:
            found = None
        if not isinstance(found, Tensor):
            raise TypeError(f"it returned a {type(output).__name__} without a tensor of logits")
        where, output = f"{where} of its {type(output).__name__} output", found
    if output.dim() > 2 and set(output.shape[2:]) == {1}:
        where, output = where or f"its output of shape {tuple(output.shape)}, flattened", output.flatten(1)
    return output, where
