"""Fast adversarial training: one FGSM step from a random start, stopped before catastrophic overfitting.

Paper:   Wong, Rice, Kolter, "Fast is better than free: Revisiting adversarial training", ICLR 2020,
         arXiv:2001.03994; step 1.25 eps (10/255 at 8/255), 15 epochs, cyclic learning rate up to 0.2.
Code:    github.com/locuslab/fast_adversarial, CIFAR10/train_fgsm.py with --early-stop: after each epoch PGD-5 attacks
         the epoch's first batch. If its accuracy has dropped by more than 20 points, training ends with the weights
         of the previous epoch.
Family:  single-step adversarial training, 2020
Cost:    5
Differs: the attack and the check use the model in eval mode, as our `at` does; the code attacks in train mode. The
         learning rate peaks at 30 % of training; the code's peaks at 50 %. The check is always on (an option in the
         code), and sets the flag "catastrophic-overfitting".
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

CHECK_BATCH_SIZE = 256
CHECK_STEPS, CHECK_RELATIVE_STEP = 5, 0.25  # PGD-5 with steps of 0.25 eps: 2/255 at 8/255
MAX_ACCURACY_DROP = 0.2  # of PGD accuracy on the batch, a fraction, from one epoch to the next


@dataclass(frozen=True, kw_only=True)
class FastATConfig(TrainConfig):
    """Published values."""

    epochs: int = 15
    lr: float = 0.2
    schedule: str = "one-cycle"
    relative_step: float = 1.25  # step size in units of eps; alpha / eps in the paper

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("relative_step", self.relative_step > 0, "> 0")


@DEFENSES.register("fast-at")
class FastAT(Defense):
    """Adversarial training with one FGSM step from a random start."""

    Config = FastATConfig
    version = 1

    def stages(self, setup: DefenseSetup) -> list[Stage]:
        """Return one stage that trains on FGSM examples and checks PGD accuracy after each epoch."""
        objective = FastATObjective(setup.model, setup.threat, self.config)
        passes = PassCounts(forward=2, input_grad=1, weight_grad=1)
        return [
            train_stage(
                self.config,
                "train",
                objective,
                passes=passes,
                on_epoch_end=objective.check_overfitting,
                final_metrics=lambda _: objective.final_metrics(),
            )
        ]


class FastATObjective(nn.Module):
    """Mean cross-entropy on FGSM examples. Keeps the weights of the last epoch before catastrophic overfitting."""

    def __init__(self, model: nn.Module, threat: ThreatModel, config: FastATConfig) -> None:
        super().__init__()
        self.model, self.threat, self.config = model, threat, config
        self.last_good = copy.deepcopy(model).requires_grad_(False)  # weights after the previous epoch
        self.pgd_accuracy: Tensor
        self.overfitted: Tensor
        self.register_buffer("pgd_accuracy", torch.tensor(0.0))  # of `last_good`, a fraction of the batch
        self.register_buffer("overfitted", torch.tensor(False))

    def forward(self, batch: Batch) -> Loss:
        """Attack the batch and compute the loss."""
        adv = self.inner_maximization(batch)
        return Loss(F.cross_entropy(self.model(adv), batch.labels))

    def inner_maximization(self, batch: Batch) -> Tensor:
        """Take one ascent step on the cross-entropy from a uniform random start, and project to the ball and [0, 1]."""
        threat = self.config.threat_at_epoch(self.threat, batch.epoch)
        with attack_mode(self.model):
            return self._attack(batch, "start", threat, 1, self.config.relative_step)

    def check_overfitting(self, batch: Batch) -> tuple[dict[str, float], bool]:
        """Measure PGD accuracy on the epoch's first batch. After a large drop, restore the previous epoch and stop.

        Returns:
            Metric "batch_pgd" (a fraction), and whether training ends here.
        """
        hits = []
        with attack_mode(self.model):
            for rows in torch.split(torch.arange(len(batch.labels), device=batch.labels.device), CHECK_BATCH_SIZE):
                part = Batch(batch.images[rows], batch.labels[rows], batch.index[rows], batch.epoch, batch.rng[rows])
                adv = self._attack(part, "watch", self.threat, CHECK_STEPS, CHECK_RELATIVE_STEP)
                with torch.no_grad():
                    hits.append(self.model(adv).argmax(1) == part.labels)
        now = torch.cat(hits).float().mean()
        overfitted = bool(now < self.pgd_accuracy - MAX_ACCURACY_DROP)
        target, source = (self.model, self.last_good) if overfitted else (self.last_good, self.model)
        target.load_state_dict(source.state_dict())
        self.overfitted.fill_(overfitted)
        if not overfitted:
            self.pgd_accuracy.copy_(now)
        return {"batch_pgd": now.item()}, overfitted

    def final_metrics(self) -> tuple[dict[str, float], list[str]]:
        """Return the PGD accuracy of the final weights, and a flag if training was stopped early."""
        return {"batch_pgd": self.pgd_accuracy.item()}, ["catastrophic-overfitting"] if self.overfitted else []

    def _attack(self, batch: Batch, draw: str, threat: ThreatModel, steps: int, relative_step: float) -> Tensor:
        def objective(adv: Tensor) -> Tensor:
            return F.cross_entropy(self.model(adv), batch.labels, reduction="none")

        start = threat.random_start(batch.images, batch.rng.child(draw))
        return pgd_ascent(objective, start, batch.images, threat, steps, relative_step * threat.eps)
