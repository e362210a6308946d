"""Clean and robust accuracy of one network, image by image.

A robust accuracy is the fraction of *all* test images that are classified correctly when clean and still are under
the attack. It is an upper bound found by this attack, never a guarantee.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from robobench.api import Attack
from robobench.errors import RequestError
from robobench.inner import frozen
from robobench.losses import errs
from robobench.randomness import Noise
from robobench.search import in_halves
from robobench.training import Images


def chunks(count: int, chunk: int) -> Iterator[Tensor]:
    """Cut the first `count` test images into chunks of their numbers."""
    yield from torch.split(torch.arange(count), chunk)


def check_logits(logits: Tensor, labels: Tensor) -> None:
    """Raise RequestError unless logits (B, K) are finite and have a class for every label."""
    if logits.dim() != 2 or len(logits) != len(labels):
        raise RequestError(
            f"the model returned shape {tuple(logits.shape)} for {len(labels)} images; "
            "it must return one (B, K) tensor of logits"
        )
    if len(labels) and int(labels.max()) >= logits.shape[1]:
        raise RequestError(
            f"label {int(labels.max())} has no logit: the model gives {logits.shape[1]} classes; "
            "use weights that fit the data set"
        )
    if not bool(torch.isfinite(logits).all()):
        raise RequestError("the model returned logits that are not finite; its accuracy means nothing")


def clean_bits(model: nn.Module, data: Images, index: Tensor, device: str) -> Tensor:
    """Say which clean images of a chunk the model gets right: (B,) bool on the CPU."""

    def bits(index: Tensor) -> Tensor:
        labels = data.labels[index].to(device)
        logits = model(data.images(index))
        check_logits(logits, labels)
        right: Tensor = logits.argmax(1) == labels
        return right.cpu()

    with frozen(model), torch.no_grad():
        return torch.cat(in_halves("clean accuracy", bits, index))


def attack_noise(attack: Attack, index: Tensor, device: str) -> Noise:
    """Return the draws of an attack on these test images: the same for every model and every seed."""
    return Noise.of(index.to(device), "attack", attack.name)


def white_box_bits(model: nn.Module, attack: Attack, data: Images, index: Tensor, clean: Tensor, device: str) -> Tensor:
    """Attack the images of a chunk that are right when clean, and say which stay right.

    An iterative attack leaves an image at its first success. Every returned image is checked against
    the threat model.

    Args:
        index: numbers of the test images, (B,) int64.
        clean: which of them the model gets right when clean, (B,) bool.

    Raises:
        ThreatModelError: an image left the ball or [0, 1], or is not finite.
    """
    right = index[clean]
    survived = clean.clone()
    if len(right) == 0:
        return survived
    images, labels = data.images(right), data.labels[right].to(device)
    noise = attack_noise(attack, right, device)
    with frozen(model):
        found = attack.find(model, images, labels, noise)
        attack.threat.check(found.adv, images, f"attack '{attack.name}'")
    survived[clean] = ~found.fooled.cpu()
    return survived


def transfer_examples(source: nn.Module, attack: Attack, data: Images, index: Tensor, device: str) -> Tensor:
    """Attack every image of a chunk on the source, right or wrong there, with the full budget.

    Returns:
        (B, C, H, W) float32: the last iterates, checked against the threat model. Early-stopped images
        hardly transfer and would flatter every defense.
    """
    images, labels = data.images(index), data.labels[index].to(device)
    with frozen(source):
        adv = attack.perturb(source, images, labels, attack_noise(attack, index, device)).detach()
    attack.threat.check(adv, images, f"attack '{attack.name}'")
    return adv


def transfer_bits(model: nn.Module, adv: Tensor, labels: Tensor, clean: Tensor) -> Tensor:
    """Say which images stay right when the model sees examples made elsewhere: (B,) bool on the CPU."""
    with frozen(model), torch.no_grad():
        logits = torch.cat(in_halves("transfer accuracy", model, adv))
        return ~errs(logits, labels.to(adv.device)).cpu() & clean
