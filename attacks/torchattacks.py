"""Attacks of the torchattacks package, with its defaults and absolute step sizes. The MACD paper used them.

Paper:   Kim, "Torchattacks: A PyTorch Repository for Adversarial Attacks", 2020, arXiv:2010.01950.
Code:    package torchattacks 3.5.1; nothing is reimplemented.
Differs: its AutoAttack gets the model's number of classes, and runs no targeted APGD below 4 classes, where the loss is
         undefined. It runs 10 iterations; the authors' AutoAttack runs 100.
"""

from __future__ import annotations

import contextlib
import sys
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
import torchattacks
from torch import Tensor, nn

from robobench.api import ATTACKS, DEFAULT_OPTIONS, Attack, AttackBudget, AttackOptions, KeyedRng


@dataclass(frozen=True, kw_only=True)
class TorchattacksPGDConfig:
    steps: int = 10
    step_size: float = 2 / 255  # absolute, not relative to eps; alpha in torchattacks


@dataclass(frozen=True, kw_only=True)
class TorchattacksPGDL2Config:
    steps: int = 10
    step_size: float = 0.2  # absolute, not relative to eps; alpha in torchattacks


@dataclass(frozen=True, kw_only=True)
class TorchattacksJitterConfig(TorchattacksPGDConfig):
    scale: float = 10.0  # largest absolute logit after rescaling
    std: float = 0.1  # of the noise added to the probabilities


@dataclass(frozen=True, kw_only=True)
class TorchattacksAutoAttackConfig:
    queries: int = 5000  # of Square; n_queries in torchattacks

    def __post_init__(self) -> None:
        if self.queries < 1:
            raise ValueError(f"queries must be >= 1, got {self.queries}")


class ContiguousGradient(nn.Module):
    """A model whose input gradient is contiguous: torchattacks calls view(), which fails on channels-last gradients."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.train(model.training)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, K)."""
        if images.requires_grad:
            images.register_hook(torch.Tensor.contiguous)  # type: ignore[no-untyped-call]
        logits: Tensor = self.model(images)
        return logits


class TorchattacksWrapper(Attack):
    """Runs an attack of torchattacks with a seed, and restores torch's global generator."""

    library = "torchattacks"

    @property
    def relative_step(self) -> float | None:
        """The absolute step size as a fraction of eps; None if there is none."""
        step = getattr(self.config, "step_size", None)
        return None if step is None or self.threat.eps == 0 else step / self.threat.eps

    @property
    def cost(self) -> float | None:
        """One forward and one input gradient per step; torchattacks does not evaluate the result."""
        steps = getattr(self.config, "steps", None)
        return None if steps is None else 2.0 * steps

    @abstractmethod
    def build(self, model: nn.Module, num_classes: int, seed: int) -> Any:
        """Return the torchattacks object."""

    def attack_full_budget(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        rng: KeyedRng,
        options: AttackOptions = DEFAULT_OPTIONS,
    ) -> Tensor:
        """Return torchattacks' images. At eps 0 its L2 attacks give NaN, so the clean images are returned."""
        if self.threat.eps == 0 or len(images) == 0:
            return images.clone()
        seed, devices = rng.seed(), [images.device] if images.is_cuda else []
        with torch.no_grad():
            num_classes = model(images[:1]).shape[1]
        # torchattacks prints a message if a model has no parameters; stdout is for tables.
        with torch.random.fork_rng(devices=devices), contextlib.redirect_stdout(sys.stderr):
            torch.manual_seed(seed)
            attack = self.build(ContiguousGradient(model), num_classes, seed)
            attack.set_device(images.device)
            with torch.enable_grad():
                adv: Tensor = attack(images.contiguous(), labels)
        return adv.detach()


@ATTACKS.register("torchattacks-fgsm")
class TorchattacksFGSM(TorchattacksWrapper):
    """torchattacks.FGSM: one step of size eps."""

    norms = ("Linf",)

    @property
    def steps(self) -> int:
        """Always 1."""
        return 1

    @property
    def relative_step(self) -> float:
        """Always 1: the step size is eps."""
        return 1.0

    @property
    def cost(self) -> float:
        """One forward and one input gradient."""
        return 2.0

    def build(self, model: nn.Module, num_classes: int, seed: int) -> Any:
        """Return torchattacks.FGSM."""
        return torchattacks.FGSM(model, eps=self.threat.eps)


@ATTACKS.register("torchattacks-pgd")
class TorchattacksPGD(TorchattacksWrapper):
    """torchattacks.PGD: 10 steps of size 2/255."""

    Config = TorchattacksPGDConfig
    norms = ("Linf",)

    def build(self, model: nn.Module, num_classes: int, seed: int) -> Any:
        """Return torchattacks.PGD."""
        cfg = self.config
        return torchattacks.PGD(model, eps=self.threat.eps, alpha=cfg.step_size, steps=cfg.steps)


@ATTACKS.register("torchattacks-pgdl2")
class TorchattacksPGDL2(TorchattacksWrapper):
    """torchattacks.PGDL2: 10 steps of size 0.2."""

    Config = TorchattacksPGDL2Config
    norms = ("L2",)
    fixed_norm = "L2"

    def build(self, model: nn.Module, num_classes: int, seed: int) -> Any:
        """Return torchattacks.PGDL2."""
        cfg = self.config
        return torchattacks.PGDL2(model, eps=self.threat.eps, alpha=cfg.step_size, steps=cfg.steps)


@ATTACKS.register("torchattacks-jitter")
class TorchattacksJitter(TorchattacksWrapper):
    """torchattacks.Jitter: 10 steps of size 2/255."""

    Config = TorchattacksJitterConfig
    norms = ("Linf",)

    def build(self, model: nn.Module, num_classes: int, seed: int) -> Any:
        """Return torchattacks.Jitter."""
        cfg = self.config
        return torchattacks.Jitter(
            model, eps=self.threat.eps, alpha=cfg.step_size, steps=cfg.steps, scale=cfg.scale, std=cfg.std
        )


@ATTACKS.register("torchattacks-autoattack")
class TorchattacksAutoAttack(TorchattacksWrapper):
    """torchattacks.AutoAttack: 10 iterations; the authors' code runs 100."""

    Config = TorchattacksAutoAttackConfig

    @property
    def budget(self) -> AttackBudget:
        """The components with 10 iterations; the authors' AutoAttack runs 100."""
        queries = self.config.queries
        parts = f"apgd-ce 10, apgd-t 10, fab-t 10, square {queries}"
        return AttackBudget(parts) if queries >= 5000 else AttackBudget(f"reduced: {parts}", reduced=True)

    @property
    def cost(self) -> float:
        """10 iterations of each component, for each wrong class in the two targeted ones, and Square's queries."""
        return 22 + ((self.num_classes or 10) - 1) * (22 + 32) + float(self.config.queries)

    def build(self, model: nn.Module, num_classes: int, seed: int) -> Any:
        """Return torchattacks.AutoAttack with the model's number of classes; its default is 10."""
        norm, eps = self.threat.norm, self.threat.eps
        attack = torchattacks.AutoAttack(model, norm=norm, eps=eps, n_classes=num_classes, seed=seed)
        ensemble = attack._autoattack.attacks
        if num_classes < 4:
            ensemble[:] = [a for a in ensemble if not isinstance(a, torchattacks.APGDT)]
        ensemble[-1].n_queries = self.config.queries
        return attack
