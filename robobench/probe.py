"""A quick look at what a network withstands, on training images: teachers before use, epochs for selection.

Not an evaluation: one short attack, and never a test image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robobench.inner import ascend, frozen
from robobench.losses import errs
from robobench.threat import ThreatModel
from robobench.training import Engine, Images

STEPS, RELATIVE_STEP = 10, 0.25  # PGD-10 with a random start, as Rice et al., ICML 2020, select epochs


@dataclass(frozen=True, order=True)
class Probe:
    """Fractions of `images` right under PGD and right when clean; ordered by PGD first."""

    pgd: float
    clean: float
    images: int

    def __str__(self) -> str:
        return f"clean {100 * self.clean:.1f} %, PGD-{STEPS} {100 * self.pgd:.1f} % of {self.images} images"

    @property
    def not_robust(self) -> bool:
        """Whether PGD leaves less than a quarter of what is right when clean."""
        return self.pgd < self.clean / 4

    def guesses(self, classes: int) -> bool:
        """Whether clean accuracy lies within three standard deviations of guessing one of `classes`, or below."""
        chance = 1 / classes
        return self.clean <= chance + 3 * math.sqrt(chance * (1 - chance) / self.images)


def probe(engine: Engine, network: nn.Module, data: Images, threat: ThreatModel, count: int, chunk: int = 128) -> Probe:
    """Measure a network on the first `count` images of `data`, through the engine's batches and precision."""
    clean, robust = 0, 0
    index = torch.arange(min(count, len(data)))
    for part in torch.split(index, chunk):
        batch = engine.batch(data, part, "probe", 0)
        with frozen(network), engine.autocast():
            right = _right(network, batch.images, batch.labels)
            images, labels = batch.images[right], batch.labels[right]
            clean += len(labels)
            if threat.eps and len(labels):

                def objective(adv: Tensor, labels: Tensor = labels) -> Tensor:
                    return F.cross_entropy(network(adv).float(), labels, reduction="none")

                start = threat.random_start(images, batch.noise[right])
                images = ascend(objective, start, images, threat, STEPS, RELATIVE_STEP * threat.eps)
            robust += int(_right(network, images, labels).sum())
    return Probe(robust / len(index), clean / len(index), len(index))


def _right(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        return ~errs(network(images), labels)


class Selection:
    """Keeps the weights of the epoch that withstands most on held-out training images.

    Looks after each epoch of the second half of training (before it, no published run peaks), outside the clock. On a
    tie the earlier epoch stays.
    """

    def __init__(self, engine: Engine, model: nn.Module, held_out: Images, threat: ThreatModel, epochs: int) -> None:
        self.engine, self.model, self.held_out, self.threat = engine, model, held_out, threat
        self.epochs = epochs
        self.seen: dict[int, Probe] = {}
        self.weights: dict[str, Tensor] = {}

    def look(self, epoch: int, last: bool = False) -> dict[str, float]:
        """Measure the network after an epoch (counted from 0), surely after the last; return figures for the log."""
        if epoch < self.epochs // 2 and not last:
            return {}
        now = probe(self.engine, self.model, self.held_out, self.threat, len(self.held_out))
        if not self.seen or now > max(self.seen.values()):
            self.weights = {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}
        self.seen[epoch] = now
        return {"held_out_clean": now.clean, "held_out_pgd": now.pgd}

    def recall(self, lines: list[dict[str, float]], weights: dict[str, Tensor]) -> None:
        """Go on where an interrupted stage stood: figures of its finished epochs, and the best weights then."""
        self.weights = weights
        looked = {e: line for e, line in enumerate(lines) if "held_out_pgd" in line}
        self.seen = {e: Probe(v["held_out_pgd"], v["held_out_clean"], len(self.held_out)) for e, v in looked.items()}

    def record(self) -> dict[str, float]:
        """Say what was selected: the best epoch (from 1), PGD accuracy there and after the last."""
        best = max(self.seen.values())
        epoch = min(e for e, value in self.seen.items() if value == best)
        last = self.seen[max(self.seen)]
        return {"epoch": epoch + 1, "best_pgd": best.pgd, "last_pgd": last.pgd, "images": best.images}
