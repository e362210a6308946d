"""Fast adversarial training: one FGSM step from a random start, stopped before catastrophic overfitting.

Paper:   Wong, Rice, Kolter, "Fast is better than free: Revisiting adversarial training", ICLR 2020,
         arXiv:2001.03994; step 1.25 eps (10/255 at 8/255), 15 epochs under a cyclic rate up to 0.2.
Code:    github.com/locuslab/fast_adversarial, CIFAR10/train_fgsm.py with --early-stop: after each epoch PGD-5 attacks
         the epoch's first batch; where its accuracy fell by more than 20 points, training ends and the weights of the
         epoch before are the result.
Differs: the attack and the check see the network in eval mode, as our `at`; the code attacks in train mode. The rate
         peaks at 30 % of training, the code's at half. The check is always on (an option there), and raises the flag
         "catastrophic-overfitting".
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robobench.api import (
    DEFENSES,
    Batch,
    Defense,
    DefenseSetup,
    Loss,
    PassCounts,
    Stage,
    ThreatModel,
    TrainConfig,
    attack_mode,
    pgd_ascent,
    train_stage,
)

CHECK_IMAGES = 256  # looked at together
CHECK_STEPS, CHECK_STEP = 5, 0.25  # of eps: PGD-5 with 2/255 at 8/255
MOST_LOST = 0.2  # PGD accuracy that an epoch may lose, a fraction of the batch


@dataclass(frozen=True, kw_only=True)
class FastATConfig(TrainConfig):
    """Published values."""

    epochs: int = 15
    lr: float = 0.2
    schedule: str = "one-cycle"
    relative_step: float = 1.25  # of eps; alpha in the paper

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("relative_step", self.relative_step > 0, "> 0")


@DEFENSES.register("fast-at")
class FastAT(Defense):
    """Adversarial training with one FGSM step from a random start."""

    Config = FastATConfig
    version = 1

    def stages(self, setup: DefenseSetup) -> list[Stage]:
        """One stage: a step, then learn from the attacked images only; a look at PGD after each epoch."""
        objective = FastATObjective(setup.model, setup.threat, self.config)
        passes = PassCounts(forward=2, input_grad=1, weight_grad=1)
        return [
            train_stage(
                self.config,
                "train",
                objective,
                passes=passes,
                on_epoch_end=objective.watch,
                final_metrics=lambda _: objective.told(),
            )
        ]


class FastATObjective(nn.Module):
    """Mean cross-entropy of the attacked batch; remembers the last epoch that withstood PGD."""

    def __init__(self, model: nn.Module, threat: ThreatModel, config: FastATConfig) -> None:
        super().__init__()
        self.model, self.threat, self.config = model, threat, config
        self.good = copy.deepcopy(model).requires_grad_(False)  # weights after the epoch before
        self.withstood: Tensor
        self.overfitted: Tensor
        self.register_buffer("withstood", torch.tensor(0.0))  # PGD accuracy of the last look, a fraction
        self.register_buffer("overfitted", torch.tensor(False))

    def forward(self, batch: Batch) -> Loss:
        """Attack the batch and compute the mean cross-entropy on what comes out."""
        adv = self.inner_maximization(batch)
        return Loss(F.cross_entropy(self.model(adv), batch.labels))

    def inner_maximization(self, batch: Batch) -> Tensor:
        """Take one step up the cross-entropy from a uniform start, back into the ball and [0, 1]."""
        threat = self.config.threat_at_epoch(self.threat, batch.epoch)
        with attack_mode(self.model):
            return self._ascend(batch, "start", threat, 1, self.config.relative_step)

    def watch(self, batch: Batch) -> tuple[dict[str, float], bool]:
        """Look at the epoch's first batch under PGD; after a great loss put the epoch before back and end."""
        hits = []
        with attack_mode(self.model):
            for rows in torch.split(torch.arange(len(batch.labels), device=batch.labels.device), CHECK_IMAGES):
                part = Batch(batch.images[rows], batch.labels[rows], batch.index[rows], batch.epoch, batch.rng[rows])
                adv = self._ascend(part, "watch", self.threat, CHECK_STEPS, CHECK_STEP)
                with torch.no_grad():
                    hits.append(self.model(adv).argmax(1) == part.labels)
        now = torch.cat(hits).float().mean()
        lost = bool(now < self.withstood - MOST_LOST)
        kept, other = (self.model, self.good) if lost else (self.good, self.model)
        kept.load_state_dict(other.state_dict())
        self.overfitted.fill_(lost)
        if not lost:
            self.withstood.copy_(now)
        return {"batch_pgd": now.item()}, lost

    def told(self) -> tuple[dict[str, float], list[str]]:
        """Say how much the kept weights withstand, and flag a training that had to end early."""
        return {"batch_pgd": self.withstood.item()}, ["catastrophic-overfitting"] if self.overfitted else []

    def _ascend(self, batch: Batch, draw: str, threat: ThreatModel, steps: int, relative_step: float) -> Tensor:
        def objective(adv: Tensor) -> Tensor:
            return F.cross_entropy(self.model(adv), batch.labels, reduction="none")

        start = threat.random_start(batch.images, batch.rng.child(draw))
        return pgd_ascent(objective, start, batch.images, threat, steps, relative_step * threat.eps)
