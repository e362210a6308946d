"""Attack images that are held in tensors, batch by batch, and keep the adversarial images."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from robobench.attack_engine.base import Attack
from robobench.core.module_state import attack_mode
from robobench.core.threat import check_unit_range
from robobench.errors import RequestError
from robobench.evaluation.accuracy import attack_rng, attack_white_box


class TensorImages:
    """Images (N, C, H, W) float in [0, 1] and labels (N,) int64 in memory, read by index like a data set.

    Args:
        device: where images are returned; the tensors stay where they are.

    Raises:
        RequestError: wrong shapes or types, or images outside [0, 1].
    """

    def __init__(self, images: Tensor, labels: Tensor, device: str | torch.device) -> None:
        check_images(images, labels)
        self._images, self.labels, self.device = images, labels, device

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, index: Tensor) -> Tensor:
        """Return the images (B, C, H, W) at positions (B,)."""
        return self._images[index.to(self._images.device)].to(self.device)


class CallableModel(nn.Module):
    """A function from images (B, C, H, W) to logits (B, K), as a module without parameters."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        return self.function(images)


def as_module(model: Callable[[Tensor], Tensor]) -> nn.Module:
    """Return `model` if it is a module, else a module that calls it; raises RequestError for anything else."""
    if isinstance(model, nn.Module):
        return model
    if not callable(model):
        raise RequestError(f"model must be an nn.Module or a function of images, got {type(model).__name__}")
    return CallableModel(model)


def device_of(model: nn.Module, images: Tensor) -> torch.device:
    """Return the device of the model's first parameter or buffer; that of the images if it has neither."""
    first = next(model.parameters(), next(model.buffers(), images))
    return first.device


def supported(attacks: list[Attack], model: nn.Module, images: Tensor, device: torch.device) -> list[Attack]:
    """Return the attacks that need no more classes than the model has."""
    with torch.no_grad(), attack_mode(model):
        classes = model(images[:1].to(device)).shape[-1]
    return [attack for attack in attacks if attack.min_classes <= classes]


def check_images(images: Tensor, labels: Tensor) -> None:
    """Raise RequestError unless images are (N, C, H, W) float in [0, 1] and labels (N,) int64, at least one."""
    if images.dim() != 4 or images.dtype not in (torch.float32, torch.float64):
        raise RequestError(
            f"images must be (N, C, H, W) float32 in [0, 1], got {tuple(images.shape)} {images.dtype}; "
            "an eps ball needs its precision: images.float() / 255 for bytes"
        )
    if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
        raise RequestError(
            f"labels must be ({len(images)},) int64, got {tuple(labels.shape)} {labels.dtype}; one class per image"
        )
    if len(images) == 0:
        raise RequestError("there are no images to attack; give at least one")
    check_unit_range(images)


def combine_examples(images: Tensor, clean: Tensor, attacks: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the example of the first attack that succeeded on each image, else the clean image: (N, C, H, W).

    Args:
        clean: (N,) bool, correct when clean.
        attacks: of each attack, images (N, C, H, W) and which stay correct, (N,) bool.
    """
    adv, left = images.clone(), clean
    for examples, outcomes in attacks:
        new = left & ~outcomes
        adv[new], left = examples[new].to(adv), left & outcomes
    return adv


def attack_tensors(
    model: nn.Module,
    attack: Attack,
    data: TensorImages,
    correct: Tensor,
    batch_size: int,
    seed: int | None = None,
    on_batch: Callable[[int, int, int, int], None] = lambda number, batches, succeeded, attacked: None,
) -> tuple[Tensor, Tensor]:
    """Attack images for white-box accuracy; other images come back unchanged.

    Args:
        correct: (N,) bool, the images to attack.
        seed: of the attack's random numbers; None: those of a run of the command line.
        on_batch: called after each batch with its number from 1 on, the number of batches, successes and images.

    Returns:
        Images (N, C, H, W), changed where the attack succeeded, and which images stay correct (N,) bool. Both are on
        the device of the given tensors.

    Raises:
        ThreatModelError: an image left the ball or [0, 1], or is not finite.
    """
    index = correct.nonzero().flatten()
    adv, left = data.images(torch.arange(len(data))).to(data.labels.device).clone(), correct.clone()
    batches = torch.split(index, batch_size) if len(index) else ()
    for number, rows in enumerate(batches, 1):
        images, labels = data.images(rows), data.labels[rows].to(data.device)
        rng = attack_rng(attack, rows, str(data.device))
        result = attack_white_box(model, attack, images, labels, rng if seed is None else rng.child("seed", seed))
        success = result.success.to(left.device)
        adv[rows[success]] = result.adv.to(adv)[success]
        left[rows] = ~success
        on_batch(number, len(batches), int(success.sum()), len(rows))
    return adv, left
