"""IAD: the student trusts a robust teacher by the teacher's probability of the true label, and itself for the rest.

Paper:   Zhu et al., "Reliable Adversarial Distillation with Unreliable Teachers", ICLR 2022,
         arXiv:2106.04928.
Code:    github.com/ZFancy/IAD; defaults follow its IAD-I.py, `variant="II"` its IAD-II.py.
Family:  distillation, 2022
Cost:    2k + 6, and 1.7 of the teacher
Differs: the student's logits on clean images and on adversarial examples are computed once each. The code's IAD-I
         makes four forward passes, two of them unused, so that BatchNorm is updated twice as often. The epoch from
         which introspection is used is a fraction of training. A teacher trained here is AT's last epoch, not its best.
Kept:    as in the code, IAD-I does not multiply the teacher's term by alpha (`alpha_on_teacher=True` does, as the
         paper's abstract says). The learning rate is never divided a second time, although the code documents a drop
         at epoch 150 (`lr_second_drop=True` adds it). In Linf the attack starts unclamped. The model is attacked in
         train mode.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
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
    lr_schedule,
    train_stage,
)


@dataclass(frozen=True, kw_only=True)
class IADConfig(AdvTrainConfig):
    """Published values: 200 epochs, the learning rate is divided by 10 at epoch 100 only."""

    weight_decay: float = 2e-4
    drops: tuple[float, ...] = (0.5,)
    lr_second_drop: bool = False  # a second drop at epoch 150 of 200: documented, but missing in the code
    variant: str = "I"  # I: teacher on clean images; II: teacher on adversarial examples, plus a clean teacher
    a: float = 1.0  # IAD-I: weight of distillation; clean cross-entropy has 1 - a
    a1: float = 0.5  # IAD-II: weight of the robust teacher and introspection
    a2: float = 0.25  # IAD-II: weight of the clean teacher; robust cross-entropy has 1 - a1 - a2
    beta: float = 0.1  # exponent of alpha = p_T(y | x') ** beta, the trust in the teacher
    temperature: float = 1.0  # tau
    introspection_start: float | None = None  # E0 / epochs; alpha is 1 before. None: 60/200 for I, 40/200 for II
    alpha_on_teacher: bool = False  # IAD-I: multiply the teacher's term by alpha; IAD-II always does
    attack_bn_mode: str = "train"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.one_of("variant", "I", "II")
        stepped = not self.lr_second_drop or self.schedule == "step"
        self.require("lr_second_drop", stepped, f"false with schedule {self.schedule}, which has no drops")
        for name in ("a", "a1", "a2"):
            self.require(name, 0 <= getattr(self, name) <= 1, "in [0, 1]")
        self.require("a2", self.a1 + self.a2 <= 1, f"<= 1 - a1 = {1 - self.a1:g}")
        self.require("beta", self.beta >= 0, ">= 0")
        self.require("temperature", self.temperature > 0, "> 0")
        self.require(
            "introspection_start", self.introspection_start is None or 0 <= self.introspection_start <= 1, "in [0, 1]"
        )

    @property
    def first_introspection(self) -> int:
        """First epoch with introspection, counted from 0; E0 in the paper."""
        published = 60 / 200 if self.variant == "I" else 40 / 200
        return round((published if self.introspection_start is None else self.introspection_start) * self.epochs)


@DEFENSES.register("iad")
class IAD(Defense):
    """Introspective adversarial distillation from a robust teacher."""

    Config = IADConfig
    version = 1
    requires = {"robust": "at"}
    presets: ClassVar = {"quick": {"inner_steps": 5}, "quick:large": {"inner_steps": 3}}

    def __init__(self, config: IADConfig) -> None:
        super().__init__(config)
        if config.variant == "II":
            self.requires = {"robust": "at", "clean": "standard"}

    def stages(self, setup: DefenseSetup) -> list[Stage]:
        """Return one stage that distills on adversarial examples."""
        cfg: IADConfig = self.config
        steps, introspecting = cfg.inner_steps, 1 - cfg.first_introspection / max(cfg.epochs, 1)
        teacher_forward = 1 + introspecting if cfg.variant == "I" else 2  # IAD-I computes alpha from epoch E0 on
        passes = PassCounts(forward=steps + 2, input_grad=steps, weight_grad=2, teacher_forward=teacher_forward)
        drops = (*cfg.drops, 0.75) if cfg.lr_second_drop else cfg.drops
        objective = IADObjective(setup.model, setup.threat, cfg, setup.required_models)
        schedule = lr_schedule(replace(cfg, drops=drops))
        return [train_stage(self.config, "distill", objective, passes=passes, schedule=schedule)]


class IADObjective(nn.Module):
    """Distillation from the teacher, introspection (the student's clean predictions), and cross-entropy."""

    def __init__(
        self, model: nn.Module, threat: ThreatModel, config: IADConfig, teachers: Mapping[str, FrozenModel]
    ) -> None:
        super().__init__()
        self.model, self.threat, self.config = model, threat, config
        self.robust = teachers["robust"]
        if config.variant == "II":
            self.clean = teachers["clean"]

    def forward(self, batch: Batch) -> Loss:
        """Attack the batch and compute the variant's loss.

        Returns:
            The loss, and metrics "alpha" and "introspective_kl" (nats), each a mean over the batch.
        """
        adv = self.inner_maximization(batch)
        adv_logits, clean_logits = self.model(adv), self.model(batch.images)
        introspective = kl(clean_logits, adv_logits)  # the target is not detached; temperature 1
        if self.config.variant == "I":
            total, alpha = self._variant_1(batch, adv, adv_logits, clean_logits, introspective)
        else:
            total, alpha = self._variant_2(batch, adv, adv_logits, introspective)
        return Loss(total, {"alpha": alpha.mean(), "introspective_kl": introspective.mean().detach()})

    def _variant_1(
        self, batch: Batch, adv: Tensor, adv_logits: Tensor, clean_logits: Tensor, introspective: Tensor
    ) -> tuple[Tensor, Tensor]:
        cfg, labels = self.config, batch.labels
        with torch.no_grad():
            target = self.robust(batch.images)
            introspects = batch.epoch >= cfg.first_introspection
            alpha = trust(self.robust(adv), labels, cfg.beta) if introspects else torch.ones_like(introspective)
        distillation = tempered_kl(target, adv_logits, cfg.temperature)
        if cfg.alpha_on_teacher:
            distillation = alpha * distillation
        total = cfg.a * (distillation + (1 - alpha) * introspective).mean()
        if cfg.a < 1:
            total = total + (1 - cfg.a) * F.cross_entropy(clean_logits, labels)
        return total, alpha

    def _variant_2(self, batch: Batch, adv: Tensor, adv_logits: Tensor, introspective: Tensor) -> tuple[Tensor, Tensor]:
        cfg, labels = self.config, batch.labels
        with torch.no_grad():
            target, clean_target = self.robust(adv), self.clean(adv)
            introspects = batch.epoch >= cfg.first_introspection
            alpha = trust(target, labels, cfg.beta) if introspects else torch.ones_like(introspective)
        distillation = alpha * tempered_kl(target, adv_logits, cfg.temperature)
        # As in the code, introspection is multiplied by temperature^2, although its temperature is 1.
        distillation = distillation + cfg.temperature**2 * (1 - alpha) * introspective
        clean_distillation = tempered_kl(clean_target, adv_logits, cfg.temperature)
        robust_loss = F.cross_entropy(adv_logits, labels)
        total = (1 - cfg.a1 - cfg.a2) * robust_loss
        total = total + cfg.a1 * distillation.mean() + cfg.a2 * clean_distillation.mean()
        return total, alpha

    def inner_maximization(self, batch: Batch) -> Tensor:
        """Maximize the cross-entropy. The Linf start is uniform in the ball and not clamped to [0, 1]."""
        cfg, threat, images = self.config, self.config.threat_at_epoch(self.threat, batch.epoch), batch.images
        rng = batch.rng.child("start")
        start = threat.random_start(images, rng)
        if threat.norm == "Linf":
            start = images + threat.eps * (2 * rng.uniform_like(images) - 1)

        def objective(adv: Tensor) -> Tensor:
            return F.cross_entropy(self.model(adv), batch.labels, reduction="none")

        with cfg.inner_attack_mode(self.model):
            return cfg.pgd_ascent(objective, start, images, threat)


def trust(teacher_logits: Tensor, labels: Tensor, beta: float) -> Tensor:
    """Compute alpha = p_T(y | x')^beta from the teacher's logits on adversarial examples: (B, K), (B,) -> (B,)."""
    return (-beta * F.cross_entropy(teacher_logits, labels, reduction="none")).exp()


def tempered_kl(teacher_logits: Tensor, student_logits: Tensor, temperature: float) -> Tensor:
    """Compute temperature^2 * KL(p_T || p_S) at a temperature: logits (B, K), (B, K) -> (B,)."""
    return temperature**2 * kl(teacher_logits / temperature, student_logits / temperature)
