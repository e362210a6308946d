"""Clean, white-box and transfer accuracy of one model, per image.

Robust accuracy is the fraction of *all* test images that are classified correctly when clean and under the attack. It
is an upper bound found by the attack, not a guarantee.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from robobench.attack_engine.base import Attack
from robobench.attack_engine.gradient import explain_missing_gradient
from robobench.attack_engine.options import DEFAULT_OPTIONS, AttackOptions
from robobench.attack_engine.randomized import RandomizedModel, predicts_wrong
from robobench.attack_engine.state import AttackResult
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
        images = data.images(index)
        wrong = model.misclassifies(images, labels) if isinstance(model, RandomizedModel) else None
        logits = model(images)
        check_logits(logits, labels)
        correct: Tensor = logits.argmax(1) == labels if wrong is None else ~wrong
        return correct.cpu()

    with attack_mode(model), torch.no_grad(), seeded_torch(KeyedRng.of(index, "clean"), device):
        return torch.cat(split_on_oom("clean accuracy", outcomes, index, on_split=on_oom_split))


def attack_rng(attack: Attack, index: Tensor, device: str) -> KeyedRng:
    """Return an attack's generator for test images (B,). It is the same for every model and training seed."""
    return KeyedRng.of(index.to(device), "attack", attack.name)


@contextmanager
def seeded_torch(rng: KeyedRng, device: str | torch.device) -> Iterator[None]:
    """Seed torch's generators for the draws of a random model; afterwards restore them."""
    with torch.random.fork_rng(devices=[device] if torch.device(device).type == "cuda" else []):
        torch.manual_seed(rng.seed())
        yield


def attack_white_box(
    model: nn.Module,
    attack: Attack,
    images: Tensor,
    labels: Tensor,
    rng: KeyedRng,
    options: AttackOptions = DEFAULT_OPTIONS,
) -> AttackResult:
    """Attack images that are correct when clean, and check every returned image against the threat model.

    A model with random outputs is judged by fresh passes after the attack: of the images that the attack moved, those
    count that enough passes misclassify.

    Raises:
        ThreatModelError: an image left the ball or [0, 1], or is not finite.
        GradientError: the attack needs a gradient that the model does not have.
    """
    with attack_mode(model), explain_missing_gradient(attack.name), seeded_torch(rng, images.device):
        result = attack.attack_early_stop(model, images, labels, rng, options)
        adv, success = result.adv.detach(), result.success
        attack.threat.check(adv, images, f"attack '{attack.name}'")
        if isinstance(model, RandomizedModel):
            success = predicts_wrong(model, adv, labels) & (adv != images).flatten(1).any(1)
    return AttackResult(adv, success)


def white_box_outcomes(
    model: nn.Module,
    attack: Attack,
    data: ImageSource,
    index: Tensor,
    clean: Tensor,
    device: str,
    options: AttackOptions = DEFAULT_OPTIONS,
) -> Tensor:
    """Attack the images that are correct when clean; return which stay correct, as `white_box_examples`."""
    return white_box_examples(model, attack, data, index, clean, device, options)[0]


def white_box_examples(
    model: nn.Module,
    attack: Attack,
    data: ImageSource,
    index: Tensor,
    clean: Tensor,
    device: str,
    options: AttackOptions = DEFAULT_OPTIONS,
) -> tuple[Tensor, Tensor]:
    """Attack the images that are correct when clean.

    An iterative attack stops on an image at its first success. All returned images are checked, as in
    `attack_white_box`.

    Args:
        index: (B,) int64, indices of test images.
        clean: (B,) bool, which of them are classified correctly when clean.

    Returns:
        Which images stay correct, (B,) bool on the CPU, and the adversarial images (S, C, H, W) of those that were
        correct when clean and do not stay so.
    """
    correct, outcomes = index[clean], clean.clone()
    if len(correct) == 0:
        return outcomes, data.images(correct)
    images, labels = data.images(correct), data.labels[correct].to(device)
    result = attack_white_box(model, attack, images, labels, attack_rng(attack, correct, device), options)
    outcomes[clean] = ~result.success.cpu()
    return outcomes, result.adv[result.success]


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
    rng = attack_rng(attack, index, device)
    with attack_mode(source), explain_missing_gradient(attack.name), seeded_torch(rng, device):
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

    def wrong(adv: Tensor, labels: Tensor) -> Tensor:
        return predicts_wrong(model, adv, labels)

    rng = KeyedRng.of(torch.arange(len(adv)), "transfer")
    with attack_mode(model), torch.no_grad(), seeded_torch(rng, adv.device):
        found = split_on_oom("transfer accuracy", wrong, adv, labels.to(adv.device), on_split=on_oom_split)
        return ~torch.cat(found).cpu() & clean
