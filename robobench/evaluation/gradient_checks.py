"""Quick checks that a model's input gradient means something: what it predicts is compared with what is measured.

They cost about 1,000 forward passes of one image, whatever the number of test images.

Thresholds: a random gradient of 32 images has a cosine of 0 +- 0.18. On the 17 networks of the committed board (Linf
8/255 and L2 0.5, photographs 0 to 127) it was at least 0.99, or 0.94 with equal weights; with the gradient of another
network at most 0.88. The gain of a signed step was 0.96 to 1.0 at eps / 10 and 0.51 to 0.98 at eps.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robobench.attack_engine.gradient import input_gradient
from robobench.core.losses import attack_cross_entropy, is_misclassified, margin
from robobench.core.rng import KeyedRng
from robobench.core.threat import ThreatModel, per_image

GRADIENT_IMAGES = 32
SCALES = (0.01, 0.1, 1.0)  # length of random steps, in units of eps; the first that agrees, or the best, counts
MIN_COSINE = 0.9  # between predicted and measured changes of the margin under random steps
MIN_IMAGE_COSINE = 0.6  # the same, every image with the same weight
# Measured over predicted rise of the margin under a signed gradient step: least at eps / 10, most at both lengths.
GAINS = (0.2, 5.0)
ATTACKED_IMAGES = 8
ATTACK_STEPS = 6
LOSS_SHARE = 0.75  # of the attacked images, by which two losses differ; at most 3 of 8 on the board's 17 networks
SEARCHED_IMAGES = 4
SEARCH_QUERIES = 40  # random windows
SIGN_QUERIES, SIGN_BATCH = 10, 5  # random corners of the ball, and how many share a batch

Objective = Callable[[Tensor], Tensor]


def measure_gradient(model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel) -> dict[str, float]:
    """Compare the margin's gradient with measured changes of the margin, at clean images and random ones in turn.

    Returns:
        "mode": largest distance between unit logits with and without autograd. "cosine" and "image_cosine": between
        predicted and measured changes under random steps, at the best of SCALES. "gain_tenth" and "gain": measured
        over predicted rise under signed gradient steps of eps / 10 and eps; NaN if the gradient is zero everywhere.
    """
    rng = KeyedRng.of(torch.arange(len(labels), device=labels.device), "gradient check")
    inside = torch.arange(len(labels), device=labels.device) % 2 == 1
    points = torch.where(per_image(inside, images), threat.random_start(images, rng.child("start")), images)
    kept: list[Tensor] = []

    def objective(adv: Tensor) -> Tensor:
        kept.append(model(adv))
        return margin(kept[0], labels)

    grad = input_gradient(objective, points).double()
    with torch.no_grad():
        logits = model(points)
        before = margin(logits, labels).double()

        def changes(delta: Tensor) -> tuple[Tensor, Tensor]:
            moved = (points + delta).clamp(0, 1)
            predicted = (grad * (moved - points).double()).flatten(1).sum(1)
            return predicted, margin(model(moved), labels).double() - before

        cosines = []
        for number, scale in enumerate(SCALES):
            ball = threat.scaled(scale)
            delta = ball.eps * ball.direction(rng.child("direction", number).normal_like(points))
            predicted, measured = changes(delta)
            largest = torch.maximum(predicted.abs(), measured.abs()).clamp_min(1e-300)
            cosines.append((_cosine(predicted, measured), _cosine(predicted / largest, measured / largest)))
            if cosines[-1][0] >= MIN_COSINE and cosines[-1][1] >= MIN_IMAGE_COSINE:
                break
        best = max(cosines)
        gains = []
        for scale in (0.1, 1.0):
            predicted, measured = changes(scale * threat.eps * threat.direction(grad.float()))
            rise = float(predicted.sum())
            gains.append(float(measured.sum()) / rise if rise > 0 else float("nan"))
    return {
        "mode": float((F.normalize(logits) - F.normalize(kept[0].detach())).norm(dim=1).max()),
        "cosine": best[0],
        "image_cosine": best[1],
        "gain_tenth": gains[0],
        "gain": gains[1],
    }


def _cosine(one: Tensor, other: Tensor) -> float:
    """Return the cosine of two vectors (B,): 1 if both are zero, 0 if one is."""
    if not bool(one.any()) and not bool(other.any()):
        return 1.0
    return float(F.cosine_similarity(one, other, dim=0, eps=1e-300).nan_to_num(0.0))


def contradicts_gradient(found: dict[str, float]) -> bool:
    """Return whether the values of `measure_gradient` contradict the gradient."""
    low, high = GAINS
    wrong_gain = found["gain_tenth"] < low or found["gain"] <= 0 or max(found["gain_tenth"], found["gain"]) > high
    return found["cosine"] < MIN_COSINE or found["image_cosine"] < MIN_IMAGE_COSINE or wrong_gain


def short_attack(
    model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, loss: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Run PGD with a few steps from a random start on a loss of logits and labels; return success (B,) bool."""
    rows = torch.arange(len(labels), device=labels.device)
    adv = threat.random_start(images, KeyedRng.of(rows, "short attack"))
    for _ in range(ATTACK_STEPS):
        kept: list[Tensor] = []

        def objective(adv: Tensor, kept: list[Tensor] = kept, labels: Tensor = labels[rows]) -> Tensor:
            kept.append(model(adv))
            return loss(kept[0], labels)

        grad = input_gradient(objective, adv)
        left = ~is_misclassified(kept[0].detach(), labels[rows])
        rows = rows[left]
        if not len(rows):
            break
        adv = threat.step(adv[left], grad[left].nan_to_num(), threat.eps / 3, images[rows])
    success = torch.ones_like(labels, dtype=torch.bool)
    if len(rows):
        with torch.no_grad():
            success[rows] = is_misclassified(model(adv), labels[rows])
    return success


def short_search(model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel) -> Tensor:
    """Search without gradients: random corners of the ball, then windows of random signs as in Square.

    Returns:
        Success, (B,) bool.
    """
    rng = KeyedRng.of(torch.arange(len(labels), device=labels.device), "short search")
    success, side = torch.zeros_like(labels, dtype=torch.bool), images.shape[-1]
    best, highest = images, torch.full_like(labels, -torch.inf, dtype=torch.float32)
    with torch.no_grad():
        for number in range(SIGN_QUERIES // SIGN_BATCH):
            noise = rng.child("corners", number).normal(SIGN_BATCH, *images.shape[1:]).transpose(0, 1)
            corners = [threat.project(images + threat.eps * threat.direction(draw), images) for draw in noise]
            wrong = is_misclassified(model(torch.cat(corners)), labels.repeat(SIGN_BATCH))
            success |= wrong.view(SIGN_BATCH, -1).any(0)
        for query in range(SEARCH_QUERIES):
            if bool(success.all()):
                break
            draw = rng.child("window", query)
            if query == 0:
                adv = threat.project(images + threat.eps * _signs(draw.uniform(images.shape[1], 1, side)), images)
            else:
                width = max(1, round(side * (0.8 * 0.5 ** (8 * query / SEARCH_QUERIES)) ** 0.5))
                adv = threat.project(torch.where(*_window(draw, images, width, threat), best), images)
            logits = model(adv)
            success |= is_misclassified(logits, labels)
            margins = margin(logits, labels).float()
            better = margins > highest
            highest = torch.where(better, margins, highest)
            best = torch.where(per_image(better, adv), adv, best)
    return success


def _signs(draws: Tensor) -> Tensor:
    return torch.where(draws < 0.5, -1.0, 1.0)


def _window(rng: KeyedRng, images: Tensor, width: int, threat: ThreatModel) -> tuple[Tensor, Tensor]:
    """Return a random window (B, 1, H, W) bool of every image, and the images with a sign per channel added."""
    height, across = images.shape[-2:]
    draws = rng.uniform(2 + images.shape[1])
    rows = torch.arange(height, device=images.device) - (draws[:, :1] * max(height - width + 1, 1)).long()
    columns = torch.arange(across, device=images.device) - (draws[:, 1:2] * max(across - width + 1, 1)).long()
    window = ((rows >= 0) & (rows < width))[:, None, :, None] & ((columns >= 0) & (columns < width))[:, None, None, :]
    length = 1.0 if threat.norm == "Linf" else (images.shape[1] * width * width) ** -0.5
    return window, images + threat.eps * length * _signs(draws[:, 2:])[:, :, None, None]


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"cross-entropy": attack_cross_entropy, "margin": margin}
