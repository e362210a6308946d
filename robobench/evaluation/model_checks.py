"""Quick checks of a model: its mode, outputs, determinism, gradient, and a few steps of attacks.

A run makes them once per model. `results.checks.CHECKS` lists the thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robobench.attack_engine.base import Attack
from robobench.attack_engine.gradient import TORCH_ERRORS, input_gradient
from robobench.core.losses import attack_cross_entropy, margin
from robobench.core.module_state import attack_mode
from robobench.core.threat import ThreatModel
from robobench.evaluation import gradient_checks as g
from robobench.models.checks import check_logits
from robobench.results.checks import BATCH_TOLERANCE, Finding, make_finding, min_count

REPEATED_IMAGES = 32  # that the quick checks pass twice
SATURATED_SHARE = (
    0.25  # of the logits other than the largest; at most 0.01 on the board's 17 networks, 0.57 with a sigmoid
)
END_WIDTH = 0.01  # of the range of all logits, at both ends
SMALL_BATCH = 4
SMALL_PASSES = 10  # over a small batch: finds a model that is rarely random
RANDOM_TOLERANCE = 1e-4  # distance of one image's logits, scaled to length 1, in two passes


def quick_model_checks(
    model: nn.Module, images: Tensor, labels: Tensor, threats: Sequence[ThreatModel] = ()
) -> list[Finding]:
    """Check a model with a few forward and backward passes.

    Weights, buffers, modes and torch's generators are restored.

    Args:
        images: (B, C, H, W) in [0, 1].
        labels: (B,) int64, on the same device.
        threats: of the run; at the smallest one the gradient is compared with measured changes, at the largest one
            attacks are compared. Both checks are left out if there is none.

    Raises:
        RequestError: the model returns no logits.
    """
    checker = ModelChecker(model, images, labels, passes=2, repeated=REPEATED_IMAGES)
    try:
        with torch.random.fork_rng():
            if checker.check_model() and threats:
                checker.check_gradient_meaning(threats)
    finally:
        checker.restore_buffers()
    return [f for found in checker.findings.values() for f in found]


def tell_about_masking(attack: Attack, model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Set `masking_suspected` of an attack that adapts to it: whether a quick check at its radius is raised.

    Args:
        images, labels: as in `quick_model_checks`.
    """
    if any(part.adapts_to_masking for part in (attack, *attack.components)):
        try:
            found = quick_model_checks(model, images, labels, [attack.threat])
        except Exception:  # out of memory, for instance; a run's own check has the flag "not-checked" then
            attack.masking_suspected = True
        else:
            attack.masking_suspected = any(f.raised and f.check.unreliable for f in found)


def image_logits(model: nn.Module, images: Tensor) -> Tensor:
    """Return the logits (B, K) float32 of images, with the generators of torch as they were."""
    with torch.random.fork_rng(), torch.no_grad(), attack_mode(model):
        logits: Tensor = model(images)
        return logits.float()


def check_unchanged(before: Tensor, after: Tensor) -> Finding:
    """Check that a model gives the same logits (B, K) before and after attacks: it may count its calls."""
    distance = _logit_distance(before, after)
    text = f"unit logits {distance:.2g} apart before and after the attacks"
    return make_finding("random-output", distance > RANDOM_TOLERANCE, text)


class ModelChecker:
    """Checks one model and collects findings.

    Attributes:
        passes: number of forward passes over the same images, in batches of `repeated` or half of the images.
        correct: (B,) bool, images classified correctly when clean; set by `check_interface`.
        findings: by the name of the check.
    """

    def __init__(self, model: nn.Module, images: Tensor, labels: Tensor, *, passes: int, repeated: int) -> None:
        self.model, self.images, self.labels, self.passes = model, images, labels, passes
        self.repeated = min(repeated, (len(labels) + 1) // 2)
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
            logits = self.model(self.images).float()
            reversed_images = self.images[: self.repeated].flip(0)
            passes = [self.model(reversed_images).float().flip(0) for _ in range(self.passes)]
        check_logits(logits, self.labels)
        changed = [n for n, b in self.model.named_buffers() if not torch.equal(b, self._buffers[n])]
        text = f"{len(training)} modules in training mode" + (f", first {training[0]}" if training else "")
        text += f"; a forward pass changes {changed[0]}" if changed else ""
        self.add("train-mode", bool(training or changed), text)
        self._check_softmax(logits)
        counts = [int((p.argmax(1) == self.labels[: self.repeated]).sum()) for p in passes]
        distance = max(_logit_distance(p, passes[0]) for p in passes)
        with torch.no_grad(), attack_mode(self.model):
            small = [self.model(self.images[:SMALL_BATCH]).float() for _ in range(SMALL_PASSES)]
        distance = max(distance, *(_logit_distance(p, small[0]) for p in small))
        text = f"{min(counts)} to {max(counts)} images correct, unit logits {distance:.2g} apart"
        self.add("random-output", min(counts) != max(counts) or distance > RANDOM_TOLERANCE, text)
        if "random-output" not in self.raised:
            with torch.no_grad(), attack_mode(self.model):
                single = self.model(self.images[:1]).float()
            distance = max(_logit_distance(part, logits[: len(part)]) for part in (passes[0], small[0], single))
            text = f"unit logits {distance:.2g} apart in batches of {self.repeated} (reversed), {SMALL_BATCH} and 1"
            self.add("batch-dependent", not distance <= BATCH_TOLERANCE, text)
        self.correct, self.num_classes = logits.argmax(1) == self.labels, logits.shape[1]
        if self.num_classes > 1:
            top = logits.topk(2, 1).values
            ties = int(((top[:, 0] == top[:, 1]) & self.correct).sum())
            self.add_count("tied-logits", ties, "are correct only because equal logits count for the first class")
            self._check_saturation(logits)

    def _check_saturation(self, logits: Tensor) -> None:
        used = logits.amax(0) > logits.amin(0)  # a class that is masked has the same logit on every image
        logits = logits[:, used] if int(used.sum()) > 1 else logits
        others, least, span = logits.sort(1).values[:, :-1], logits.min(), logits.max() - logits.min()
        ends = (others - least < END_WIDTH * span) | (logits.max() - others < END_WIDTH * span)
        share = float(ends.float().mean())
        self.add("saturated-logits", share >= SATURATED_SHARE, f"{100 * share:.0f} % of the logits but the largest")

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
            return attack_cross_entropy(self.model(adv), labels[: len(adv)])

        def margin_loss(adv: Tensor) -> Tensor:
            return margin(self.model(adv), labels)

        try:
            with attack_mode(self.model):
                grad = input_gradient(cross_entropy, images).flatten(1)
                few = input_gradient(cross_entropy, images[:SMALL_BATCH]).flatten(1)
                zero = int((grad == 0).all(1).sum())
                flat = int((input_gradient(margin_loss, images).flatten(1) == 0).all(1).sum()) if zero else 0
        except RuntimeError as err:  # torch's own message for a graph that does not reach the images
            if not any(text in str(err) for text in TORCH_ERRORS):
                raise
            self.add("zero-gradients", True, "no gradient reaches the images: forward() cuts the graph")
            return False
        cosine = F.cosine_similarity(few.double(), grad[:SMALL_BATCH].double(), eps=1e-300)
        moved = few.ne(0).any(1) | grad[:SMALL_BATCH].ne(0).any(1)
        if not self.raised & {"random-output", "batch-dependent"} and bool(moved.any()):
            least = float(cosine[moved].min())
            text = f"gradients in batches of {len(few)} and {len(grad)} have a cosine of {least:.2g}"
            self.add("batch-dependent", least < g.MIN_COSINE, text)
        infinite = int((~torch.isfinite(grad)).any(1).sum())
        text = f"{zero} of {len(labels)} images under cross-entropy"
        text += f", {flat} under the margin loss" if zero else ""
        self.add("zero-gradients", zero >= min_count(len(labels)), text)
        self.add("non-finite-gradients", infinite > 0, f"{infinite} of {len(labels)} images")
        return not infinite

    def check_gradient_meaning(self, threats: Sequence[ThreatModel]) -> None:
        """Compare the gradient with measured changes, two losses with each other, and both with a query search.

        Left out for a random model. Radii of the first norm are used.
        """
        here = sorted((t for t in threats if t.norm == threats[0].norm), key=lambda t: t.eps)
        threat, largest = here[0], here[-1]
        if "random-output" in self.raised or self.num_classes < 2:
            return
        images, labels = self.images[: g.GRADIENT_IMAGES], self.labels[: g.GRADIENT_IMAGES]
        with attack_mode(self.model):
            found = g.measure_gradient(self.model, images, labels, threat)
        text = f"unit logits {found['mode']:.2g} apart"
        self.add("grad-mode-dependent", not found["mode"] <= BATCH_TOLERANCE, text)
        text = f"at {threat}: cosine {found['cosine']:.2f} ({found['image_cosine']:.2f} with equal weights), "
        text += f"gain {found['gain_tenth']:.2g} at eps / 10, {found['gain']:.2g} at eps"
        self.add("gradient-mismatch", g.contradicts_gradient(found), text)
        rows = self.correct.nonzero().flatten()[: g.ATTACKED_IMAGES]
        if len(rows):
            self._compare_short_attacks(self.images[rows], self.labels[rows], largest)

    def _compare_short_attacks(self, images: Tensor, labels: Tensor, threat: ThreatModel) -> None:
        with attack_mode(self.model):
            found = {name: g.short_attack(self.model, images, labels, threat, loss) for name, loss in g.LOSSES.items()}
            left = ~torch.stack(list(found.values())).any(0)
            rows = left.nonzero().flatten()[: g.SEARCHED_IMAGES]
            lost = int(g.short_search(self.model, images[rows], labels[rows], threat).sum()) if len(rows) else 0
        counts = {name: int(success.sum()) for name, success in found.items()}
        text = " and ".join(f"{count} under the {name}" for name, count in counts.items())
        text = f"{g.ATTACK_STEPS} steps at {threat} find {text} of {len(labels)} images"
        apart = max(counts.values()) - min(counts.values())
        self.add("loss-dependent", apart >= max(3, g.LOSS_SHARE * len(labels)), text)
        text = f"{lost} of {len(rows)} images that {g.ATTACK_STEPS} gradient steps leave, at {threat}"
        self.add("black-box-stronger", lost >= 2, text)


def _logit_distance(one: Tensor, other: Tensor) -> float:
    """Return the largest distance between logits (B, K) that are scaled to length 1."""
    return float((F.normalize(one) - F.normalize(other)).norm(dim=1).max())
