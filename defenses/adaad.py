"""AdaAD: distillation on the images in the ball where student and teacher disagree most.

Paper:   Huang et al., "Boosting Accuracy and Robustness of Student Models via Adaptive Adversarial
         Distillation", CVPR 2023.
Code:    github.com/boyellow/AdaAD; defaults follow the commands of its README (CIFAR-10). The defaults of its
         arguments are eps 16/255 and step 4/255.
Family:  distillation, 2023
Cost:    2k + 3, and 2k + 1 of the teacher
Differs: with alpha = 1 the term of the clean images has weight 0, and no forward pass is made for it; the code makes
         it, which changes BatchNorm's running statistics. AdaIAD runs at temperature 1; the README's command leaves
         it at 30. AdaIAD's outer loss computes no gradient for the teacher; the code computes and ignores it.
         A teacher trained here is AT's last epoch, not its best.
Kept:    the KL is a mean over images and classes (KL / K), as in the code for CIFAR-10. Its CIFAR-100 branch takes the
         mean over images only. `reduction="published"` takes the former below 100 classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robobench.api import (
    DEFENSES,
    AdvTrainConfig,
    Batch,
    Defense,
    DefenseSetup,
    FrozenModel,
    Loss,
    PassCounts,
    Stage,
    ThreatModel,
    kl,
    train_stage,
)


@dataclass(frozen=True, kw_only=True)
class AdaADConfig(AdvTrainConfig):
    """Published values: 200 epochs, the learning rate is divided by 10 at epochs 100 and 150."""

    form: str = "adaad"  # adaad | adaiad: AdaAD's attack with IAD's introspection in the loss
    alpha: float = 1.0  # adaad: weight of the adversarial examples; clean images have 1 - alpha
    reduction: str = "published"  # adaad: mean (over images and classes) | batchmean (over images) | published
    temperature: float = 1.0  # adaiad: tau
    beta: float = 0.1  # adaiad: exponent of p_T(y | x') ** beta, the trust in the teacher
    introspection_start: float = 60 / 200  # adaiad: E0 / epochs; the trust is 1 before

    def __post_init__(self) -> None:
        super().__post_init__()
        self.one_of("form", "adaad", "adaiad")
        self.require("alpha", 0 <= self.alpha <= 1, "in [0, 1]")
        self.one_of("reduction", "published", "mean", "batchmean")
        self.require("temperature", self.temperature > 0, "> 0")
        self.require("beta", self.beta >= 0, ">= 0")
        self.require("introspection_start", 0 <= self.introspection_start <= 1, "in [0, 1]")

    @property
    def first_introspection(self) -> int:
        """First epoch with introspection (AdaIAD), counted from 0; E0 in the paper."""
        return round(self.introspection_start * self.epochs)


@DEFENSES.register("adaad")
class AdaAD(Defense):
    """Distillation on images where student and robust teacher disagree most."""

    Config = AdaADConfig
    version = 1
    requires = {"robust": "at"}
    presets: ClassVar = {
        "quick": {"inner_steps": 5, "reduction": "batchmean"},  # KL / K is too small a loss for few epochs
        "quick:large": {"inner_steps": 3},
    }

    def stages(self, setup: DefenseSetup) -> list[Stage]:
        """Return one stage that attacks student and teacher together, and distills."""
        cfg: AdaADConfig = self.config
        steps, introspects, clean_term = cfg.inner_steps, cfg.form == "adaiad", cfg.alpha < 1
        passes = PassCounts(
            forward=steps + 1 + (introspects or clean_term),
            input_grad=steps,
            weight_grad=1 + (introspects or clean_term),
            teacher_forward=steps + 1 + (clean_term and not introspects),
            teacher_input_grad=steps,
        )
        objective = AdaADObjective(setup.model, setup.threat, cfg, setup.required_models["robust"])
        return [train_stage(self.config, "distill", objective, passes=passes)]


class AdaADObjective(nn.Module):
    """KL(teacher || student) on adversarial examples, plus the form's term on clean images."""

    def __init__(self, model: nn.Module, threat: ThreatModel, config: AdaADConfig, teacher: FrozenModel) -> None:
        super().__init__()
        self.model, self.threat, self.config, self.teacher = model, threat, config, teacher

    def forward(self, batch: Batch) -> Loss:
        """Attack the batch and compute the form's loss. The teacher's targets are detached.

        Returns:
            The loss, and metrics "adv_kl" and, as the form has them, "clean_kl" or "introspective_kl" (nats).
        """
        adv = self.inner_maximization(batch)
        with torch.no_grad():
            target = self.teacher(adv)
        form = self._adaad if self.config.form == "adaad" else self._adaiad
        return form(batch, adv, target)

    def _adaad(self, batch: Batch, adv: Tensor, target: Tensor) -> Loss:
        cfg = self.config
        classes = target.shape[1]
        mean = cfg.reduction == "mean" or (cfg.reduction == "published" and classes < 100)
        scale = 1 / classes if mean else 1.0
        adv_kl = kl(target, self.model(adv)).mean()
        total = scale * cfg.alpha * adv_kl
        if cfg.alpha == 1:
            return Loss(total, {"adv_kl": adv_kl.detach()})
        with torch.no_grad():
            clean_target = self.teacher(batch.images)
        clean_kl = kl(clean_target, self.model(batch.images)).mean()
        total = total + scale * (1 - cfg.alpha) * clean_kl
        return Loss(total, {"adv_kl": adv_kl.detach(), "clean_kl": clean_kl.detach()})

    def _adaiad(self, batch: Batch, adv: Tensor, target: Tensor) -> Loss:
        cfg, tau = self.config, self.config.temperature
        adv_logits, clean_logits = self.model(adv), self.model(batch.images)
        weight = torch.zeros(())  # of introspection: 1 - trust
        if batch.epoch >= cfg.first_introspection:
            weight = 1 - (-cfg.beta * F.cross_entropy(target, batch.labels, reduction="none")).exp()
        adv_kl = tau**2 * kl(target / tau, adv_logits / tau)  # not multiplied by the trust, as in the code
        introspective = kl(clean_logits, adv_logits)  # the target is not detached, as in IAD
        total = (adv_kl + weight * introspective).mean()
        metrics = {"adv_kl": adv_kl.mean().detach(), "introspective_kl": introspective.mean().detach()}
        return Loss(total, metrics)

    def inner_maximization(self, batch: Batch) -> Tensor:
        """Maximize KL(p_T(x') || p_S(x')). The start is x + 0.001 N(0, 1).

        The teacher's predictions are those on the current iterate, and the gradient flows through both models.
        """
        cfg, threat, images = self.config, self.config.threat_at_epoch(self.threat, batch.epoch), batch.images

        def objective(adv: Tensor) -> Tensor:
            return kl(self.teacher(adv), self.model(adv))

        start = images + 0.001 * batch.rng.child("start").normal_like(images)  # not clamped, as in the code
        with cfg.inner_attack_mode(self.model):
            return cfg.pgd_ascent(objective, start, images, threat)
