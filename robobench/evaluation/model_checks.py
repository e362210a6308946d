"""Checks of a model that need no attack: its mode, outputs, determinism, and the gradient at clean images.

A run makes them once per model. `results.checks.CHECKS` lists the thresholds.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robobench.attack_engine.gradient import input_gradient
from robobench.core.losses import margin
from robobench.core.module_state import attack_mode
from robobench.models.checks import check_logits
from robobench.results.checks import BATCH_TOLERANCE, Finding, make_finding, min_count

REPEATED_PASSES = 3  # over the same images, in the quick checks
RANDOM_TOLERANCE = 1e-4  # distance of one image's logits, scaled to length 1, in two passes


def quick_model_checks(model: nn.Module, images: Tensor, labels: Tensor) -> list[Finding]:
    """Check a model with five forward passes and one backward pass.

    Weights, buffers, modes and torch's generators are restored.

    Args:
        images: (B, C, H, W) in [0, 1].
        labels: (B,) int64, on the same device.

    Raises:
        RequestError: the model returns no logits.
    """
    checker = ModelChecker(model, images, labels, passes=REPEATED_PASSES)
    try:
        with torch.random.fork_rng():
            checker.check_model()
    finally:
        checker.restore_buffers()
    return [f for found in checker.findings.values() for f in found]


class ModelChecker:
    """Checks one model and collects findings.

    Attributes:
        correct: (B,) bool, images classified correctly when clean; set by `check_interface`.
        findings: by the name of the check.
    """

    def __init__(self, model: nn.Module, images: Tensor, labels: Tensor, *, passes: int) -> None:
        self.model, self.images, self.labels, self.passes = model, images, labels, passes
        self.correct, self.num_classes = torch.zeros_like(labels, dtype=torch.bool), 0
        self.findings: dict[str, list[Finding]] = {}
        self.min_count = min_count(len(labels))
        self._buffers = {name: b.clone() for name, b in model.named_buffers()}

    @property
    def raised(self) -> set[str]:
        """Names of the checks that were raised."""
        return {name for name, found in self.findings.items() if any(f.raised for f in found)}

    def add(self, name: str, raised: bool | None, measured: str) -> None:
        """Add the result of a check."""
        self.findings.setdefault(name, []).append(make_finding(name, raised, measured))

    def add_count(self, name: str, count: int, measured: str) -> None:
        """Add the result of a check that counts images."""
        self.add(name, count >= self.min_count, f"{count} of {len(self.labels)} images {measured}")

    def restore_buffers(self) -> None:
        """Restore the buffers that forward passes changed."""
        for name, buffer in self.model.named_buffers():
            buffer.data.copy_(self._buffers[name])

    def check_model(self) -> bool:
        """Check interface and gradients; return False if attacking the model would be meaningless."""
        self.check_interface()
        return "input-range" not in self.raised and self.check_gradients()

    def check_interface(self) -> None:
        """Check mode, value range, logits, determinism, and independence of the batch."""
        training = [name or "the model" for name, m in self.model.named_modules() if m.training]
        low, high = self.images.min().item(), self.images.max().item()
        self.add("input-range", not (low >= -1e-6 and high <= 1 + 1e-6), f"values in [{low:.3g}, {high:.3g}]")
        with torch.no_grad(), attack_mode(self.model):
            passes = [self.model(self.images).float() for _ in range(self.passes)]
        logits = passes[0]
        check_logits(logits, self.labels)
        changed = [n for n, b in self.model.named_buffers() if not torch.equal(b, self._buffers[n])]
        text = f"{len(training)} modules in training mode" + (f", first {training[0]}" if training else "")
        text += f"; a forward pass changes {changed[0]}" if changed else ""
        self.add("train-mode", bool(training or changed), text)
        self._check_softmax(logits)
        counts = [int((p.argmax(1) == self.labels).sum()) for p in passes]
        distance = max(_logit_distance(p, logits) for p in passes)
        text = f"{min(counts)} to {max(counts)} images correct, unit logits {distance:.2g} apart"
        self.add("random-output", min(counts) != max(counts) or distance > RANDOM_TOLERANCE, text)
        if "random-output" not in self.raised:
            with torch.no_grad(), attack_mode(self.model):
                halves = [self.model(half).float() for half in self.images.flip(0).chunk(2)]
            distance = _logit_distance(torch.cat(halves).flip(0), logits)
            text = f"unit logits {distance:.2g} apart in halves, last first"
            self.add("batch-dependent", not distance <= BATCH_TOLERANCE, text)
        self.correct, self.num_classes = logits.argmax(1) == self.labels, logits.shape[1]

    def _check_softmax(self, logits: Tensor) -> None:
        error = (logits.sum(1) - 1).abs().max().item()
        probabilities = logits.max() < 1 + 1e-5 and logits.min() > -1e-5 and error < 1e-5
        text = f"outputs in [{logits.min():.3g}, {logits.max():.3g}], sums within {error:.2g} of 1"
        self.add("softmax-output", bool(probabilities), text)

    def check_gradients(self) -> bool:
        """Check the gradient of the cross-entropy at clean images; return False if none reaches the images."""
        images, labels = self.images[self.correct], self.labels[self.correct]
        if len(labels) == 0:
            return False

        def cross_entropy(adv: Tensor) -> Tensor:
            return F.cross_entropy(self.model(adv), labels, reduction="none")

        def margin_loss(adv: Tensor) -> Tensor:
            return margin(self.model(adv), labels)

        try:
            with attack_mode(self.model):
                grad = input_gradient(cross_entropy, images).flatten(1)
                zero = int((grad == 0).all(1).sum())
                flat = int((input_gradient(margin_loss, images).flatten(1) == 0).all(1).sum()) if zero else 0
        except RuntimeError as err:  # torch's own message for a graph that does not reach the images
            if not any(text in str(err) for text in ("grad", "used in the graph")):
                raise
            self.add("zero-gradients", True, "no gradient reaches the images: forward() cuts the graph")
            return False
        infinite = int((~torch.isfinite(grad)).any(1).sum())
        text = "under cross-entropy" + (f", {flat} under the margin loss" if zero else "")
        self.add_count("zero-gradients", zero, text)
        self.add("non-finite-gradients", infinite > 0, f"{infinite} of {len(self.labels)} images")
        return not infinite


def _logit_distance(one: Tensor, other: Tensor) -> float:
    """Return the largest distance between logits (B, K) that are scaled to length 1."""
    return float((F.normalize(one) - F.normalize(other)).norm(dim=1).max())
