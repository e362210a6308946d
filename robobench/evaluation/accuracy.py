"""Clean, white-box and transfer accuracy of one model, per image.

Robust accuracy is the fraction of *all* test images that are classified correctly when clean and under the attack. It
is an upper bound found by the attack, not a guarantee.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from robobench.attack_engine.base import Attack
from robobench.attack_engine.gradient import explain_missing_gradient
from robobench.attack_engine.options import DEFAULT_OPTIONS, AttackOptions
from robobench.core.losses import is_misclassified
from robobench.core.memory import split_on_oom
from robobench.core.module_state import attack_mode
from robobench.core.rng import KeyedRng
from robobench.models.checks import check_logits
from robobench.training.context import ImageSource


def batch_indices(count: int, batch_size: int) -> list[Tensor]:
    """Split the first `count` test images into batches of their indices."""
    return list(torch.split(torch.arange(count), batch_size))


def clean_outcomes(
    model: nn.Module,
    data: ImageSource,
    index: Tensor,
    device: str,
    on_oom_split: Callable[[str], None] = warnings.warn,
) -> Tensor:
    """Return which of the clean images at `index` (B,) are classified correctly: (B,) bool on the CPU."""

    def outcomes(index: Tensor) -> Tensor:
        labels = data.labels[index].to(device)
        logits = model(data.images(index))
        check_logits(logits, labels)
        correct: Tensor = logits.argmax(1) == labels
        return correct.cpu()

    with attack_mode(model), torch.no_grad():
        return torch.cat(split_on_oom("clean accuracy", outcomes, index, on_split=on_oom_split))


def attack_rng(attack: Attack, index: Tensor, device: str) -> KeyedRng:
    """Return an attack's generator for test images (B,). It is the same for every model and training seed."""
    return KeyedRng.of(index.to(device), "attack", attack.name)


def white_box_outcomes(
    model: nn.Module,
    attack: Attack,
    data: ImageSource,
    index: Tensor,
    clean: Tensor,
    device: str,
    options: AttackOptions = DEFAULT_OPTIONS,
) -> Tensor:
    """Attack the images that are correct when clean; return which stay correct: (B,) bool on the CPU.

    An iterative attack stops on an image at its first success. All returned images are checked against the threat
    model.

    Args:
        index: (B,) int64, indices of test images.
        clean: (B,) bool, which of them are classified correctly when clean.

    Raises:
        ThreatModelError: an image left the ball or [0, 1], or is not finite.
        GradientError: the attack needs a gradient that the model does not have.
    """
    correct = index[clean]
    outcomes = clean.clone()
    if len(correct) == 0:
        return outcomes
    images, labels = data.images(correct), data.labels[correct].to(device)
    rng = attack_rng(attack, correct, device)
    with attack_mode(model), explain_missing_gradient(attack.name):
        result = attack.attack_early_stop(model, images, labels, rng, options)
        attack.threat.check(result.adv, images, f"attack '{attack.name}'")
    outcomes[clean] = ~result.success.cpu()
    return outcomes


def transfer_examples(
    source: nn.Module,
    attack: Attack,
    data: ImageSource,
    index: Tensor,
    device: str,
    options: AttackOptions = DEFAULT_OPTIONS,
) -> Tensor:
    """Attack the images at `index` (B,) on the transfer source, all of them with the full budget.

    Early-stopped examples transfer poorly, which would overestimate robustness. Images that the source misclassifies
    when clean are attacked too.

    Returns:
        (B, C, H, W) float32, checked against the threat model.
    """
    images, labels = data.images(index), data.labels[index].to(device)
    with attack_mode(source), explain_missing_gradient(attack.name):
        rng = attack_rng(attack, index, device)
        adv = attack.attack_full_budget(source, images, labels, rng, options).detach()
    attack.threat.check(adv, images, f"attack '{attack.name}'")
    return adv


def transfer_outcomes(
    model: nn.Module,
    adv: Tensor,
    labels: Tensor,
    clean: Tensor,
    on_oom_split: Callable[[str], None] = warnings.warn,
) -> Tensor:
    """Return which images stay correct on transfer examples adv (B, C, H, W): (B,) bool on the CPU.

    Args:
        clean: (B,) bool; an image that is misclassified when clean counts as misclassified.
    """
    with attack_mode(model), torch.no_grad():
        logits = torch.cat(split_on_oom("transfer accuracy", model, adv, on_split=on_oom_split))
        return ~is_misclassified(logits, labels.to(adv.device)).cpu() & clean
