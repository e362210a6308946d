"""IKL: TRADES' KL split into a squared distance of logit differences and a soft cross-entropy, improved separately.

Paper:   Cui et al., "Decoupled Kullback-Leibler Divergence Loss", NeurIPS 2024, arXiv:2305.13948.
Code:    github.com/jiequancui/DKL, DKLv1/Adv-training-dkl (no license there: read, not copied); defaults follow its
         CIFAR-10 script.
Family:  adversarial training, 2024
Cost:    2k + 7
Reports: CIFAR-10, Linf 8/255, WideResNet-34-10: 85.31 % clean, 57.13 % AutoAttack, with AWP and averaged weights
         (README).
Differs: without AWP and weight averaging, which the code always uses. The learning rate reaches its first value at
         epoch 0 of a cosine of E epochs; the code's cosine has E + 1 epochs and begins with the second.
Kept:    five steps of eps / 2 in every epoch. The code means to begin with two steps and adds one at epochs 50, 100
         and 150, but each of its conditions also holds for the earlier epochs, so that the last always wins. The
         radius grows linearly over the whole training. The class weights are the class means of the softened clean
         predictions of the previous epoch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
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
    mean_over_batch,
    train_stage,
)


@dataclass(frozen=True, kw_only=True)
class IKLConfig(AdvTrainConfig):
    """Published values: 200 epochs, cosine learning rate from 0.2."""

    lr: float = 0.2
    schedule: str = "cosine"
    eps_rampup: float = 1.0
    inner_steps: int = 5
    relative_step: float = 0.5
    alpha: float = 4.0  # weight of the soft cross-entropy
    beta: float = 20.0  # weight of the squared distance
    temperature: float = 4.0  # T, of the predictions that the class weights are means of

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("alpha", self.alpha >= 0, ">= 0")
        self.require("beta", self.beta >= 0, ">= 0")
        self.require("temperature", self.temperature > 0, "> 0")


@DEFENSES.register("ikl")
class IKL(Defense):
    """Adversarial training with the improved Kullback-Leibler loss and class-wise weights."""

    Config = IKLConfig
    version = 1

    def stages(self, setup: DefenseSetup) -> list[Stage]:
        """Return one stage that trains on clean images and adversarial examples."""
        steps = self.config.inner_steps
        passes = PassCounts(forward=steps + 3, input_grad=steps, weight_grad=2)
        objective = IKLObjective(setup.model, setup.threat, self.config, setup.num_classes)
        return [train_stage(self.config, "train", objective, passes=passes, on_epoch_end=objective.update_weights)]


class IKLObjective(nn.Module):
    """CE(S(x), y) + beta * Var_w(S(x) - S(x')) / 2 + alpha * CE(S(x'), p_S(x)), w the class means of y's class."""

    class_weights: Tensor
    prob_sums: Tensor

    def __init__(self, model: nn.Module, threat: ThreatModel, config: IKLConfig, num_classes: int) -> None:
        super().__init__()
        self.model, self.threat, self.config = model, threat, config
        self.register_buffer("class_weights", torch.full((num_classes, num_classes), 1 / num_classes))  # of this epoch
        self.register_buffer("prob_sums", torch.zeros(num_classes, num_classes))  # for the next; row: label

    def forward(self, batch: Batch) -> Loss:
        """Attack the batch, compute the loss, and add the clean predictions to the sums of their classes.

        Returns:
            The loss, and metrics "clean_loss", "distance" and "soft_loss", each a mean over the batch.
        """
        cfg, adv = self.config, self.inner_maximization(batch)
        adv_logits, clean_logits = self.model(adv), self.model(batch.images)
        self.add_predictions(clean_logits.detach(), batch.labels)
        clean_loss = F.cross_entropy(clean_logits, batch.labels)
        distance = weighted_variance(clean_logits - adv_logits, self.class_weights[batch.labels]).mean() / 2
        soft_loss = F.cross_entropy(adv_logits, clean_logits.detach().softmax(1))
        terms = {"clean_loss": clean_loss, "distance": distance, "soft_loss": soft_loss}
        total = clean_loss + cfg.beta * distance + cfg.alpha * soft_loss
        return Loss(total, {name: value.detach() for name, value in terms.items()})

    def inner_maximization(self, batch: Batch) -> Tensor:
        """Maximize KL(p_S(x) || p_S(x')), as TRADES does."""
        return self.config.kl_ascent(self.model, batch, self.threat)

    def add_predictions(self, clean_logits: Tensor, labels: Tensor) -> None:
        """Add softened predictions to the row of each image's class, over all devices."""
        one_hot = F.one_hot(labels, clean_logits.shape[1]).to(clean_logits.dtype)
        sums = one_hot.T @ (clean_logits / self.config.temperature).softmax(1)
        self.prob_sums += mean_over_batch(sums / len(labels), len(labels)) * len(labels)

    def update_weights(self, batch: Batch) -> tuple[dict[str, float], bool]:
        """Replace the class weights by this epoch's means, of the classes that had images; training goes on."""
        totals = self.prob_sums.sum(1, keepdim=True)
        means = self.prob_sums / totals.clamp_min(torch.finfo(totals.dtype).tiny)
        self.class_weights.copy_(torch.where(totals > 0, means, self.class_weights))
        self.prob_sums.zero_()
        return {}, False


def weighted_variance(values: Tensor, weights: Tensor) -> Tensor:
    """Return the variance over classes of values (B, K), with weights (B, K) whose rows sum to 1: (B,).

    It equals half the weighted sum over pairs of classes of (v_j - v_k)^2, the form of the code.
    """
    mean = (weights * values).sum(1, keepdim=True)
    return (weights * (values - mean).square()).sum(1)
