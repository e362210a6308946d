"""MART: boosted cross-entropy on adversarial examples, and a KL term weighted by how wrong the clean prediction is.

Paper:   Wang et al., "Improving Adversarial Robustness Requires Revisiting Misclassified Examples", ICLR 2020.
Code:    github.com/YisenWang/MART (no license: read, not copied); defaults follow its train_resnet.py.
Family:  adversarial training, 2020
Cost:    2k + 6
Reports: CIFAR-10, Linf 8/255: WideResNet-28-10 with 500,000 unlabeled images 87.50 % clean, 56.29 % AutoAttack
         (RobustBench, Wang2020Improving).
Differs: the step size is 0.25 eps; the code has 0.007 / 0.031 (0.226 eps). In L2 the attack is PGD; the code has none.
Kept:    the constants that keep logarithms finite (1.0001, 1e-12) and the weight positive (1.0000001). The weight
         1 - p_S(y | x) has a gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from robobench.api import (
    DEFENSES,
    AdvTrainConfig,
    Batch,
    Defense,
    DefenseSetup,
    Loss,
    PassCounts,
    Stage,
    ThreatModel,
    mask_true_class,
    train_stage,
)


@dataclass(frozen=True, kw_only=True)
class MARTConfig(AdvTrainConfig):
    """Published values: 120 epochs, the learning rate is divided by 10 in epochs 75, 90 and 100 (counted from 1)."""

    epochs: int = 120
    lr: float = 0.01
    weight_decay: float = 3.5e-3
    drops: tuple[float, ...] = (74 / 120, 89 / 120, 99 / 120)
    beta: float = 5.0  # weight of the KL term; lambda in the paper

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("beta", self.beta >= 0, ">= 0")


@DEFENSES.register("mart")
class MART(Defense):
    """Adversarial training that weights each image by how misclassified it is."""

    Config = MARTConfig
    version = 1
    presets: ClassVar = {"quick": {"inner_steps": 5}, "quick:large": {"inner_steps": 3}}

    def stages(self, setup: DefenseSetup) -> list[Stage]:
        """Return one stage that trains on clean images and adversarial examples."""
        steps = self.config.inner_steps
        passes = PassCounts(forward=steps + 2, input_grad=steps, weight_grad=2)
        objective = MARTObjective(setup.model, setup.threat, self.config)
        return [train_stage(self.config, "train", objective, passes=passes)]


class MARTObjective(nn.Module):
    """BCE(p_S(x'), y) + beta * KL(p_S(x) || p_S(x')) * (1 - p_S(y | x)). All factors have a gradient."""

    def __init__(self, model: nn.Module, threat: ThreatModel, config: MARTConfig) -> None:
        super().__init__()
        self.model, self.threat, self.config = model, threat, config

    def forward(self, batch: Batch) -> Loss:
        """Attack the batch and compute the loss.

        Returns:
            The loss, and metrics "boosted_loss" and "weighted_kl" (nats), each a mean over the batch.
        """
        adv = self.inner_maximization(batch)
        clean_probs, adv_logits = self.model(batch.images).softmax(1), self.model(adv)
        adv_probs = adv_logits.softmax(1)
        boosted = (
            F.cross_entropy(adv_logits, batch.labels, reduction="none") + margin_term(adv_probs, batch.labels)
        ).mean()
        divergence = F.kl_div((adv_probs + 1e-12).log(), clean_probs, reduction="none").sum(1)
        error = 1.0000001 - clean_probs.gather(1, batch.labels[:, None]).squeeze(1)
        weighted_kl = (divergence * error).mean()
        total = boosted + self.config.beta * weighted_kl
        return Loss(total, {"boosted_loss": boosted.detach(), "weighted_kl": weighted_kl.detach()})

    def inner_maximization(self, batch: Batch) -> Tensor:
        """Maximize the cross-entropy. The start is x + 0.001 N(0, 1)."""

        def objective(adv: Tensor) -> Tensor:
            return F.cross_entropy(self.model(adv), batch.labels, reduction="none")

        with self.config.inner_attack_mode(self.model):
            return self.config.ascend_from_noise(objective, batch, self.threat)


def margin_term(probs: Tensor, labels: Tensor) -> Tensor:
    """Compute -log(1 - max_{k != y} p_k), with the code's constants: probs (B, K), (B,) -> (B,)."""
    return -(1.0001 - mask_true_class(probs, labels).amax(1) + 1e-12).log()
