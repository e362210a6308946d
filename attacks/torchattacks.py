"""torchattacks' own attacks, with its defaults and its absolute steps: the tools the MACD paper used.

Paper:   Kim, "Torchattacks: A PyTorch Repository for Adversarial Attacks", 2020, arXiv:2010.01950.
Code:    the package torchattacks 3.5.1; nothing is reimplemented here.
Differs: its AutoAttack is told the model's class count and leaves out targeted APGD below 4 classes, where
         its loss is undefined. It runs 10 iterations where the authors' AutoAttack runs 100.
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
    step_size: float = 2 / 255  # absolute, whatever eps is; alpha in torchattacks


@dataclass(frozen=True, kw_only=True)
class TorchattacksPGDL2Config:
    steps: int = 10
    step_size: float = 0.2  # absolute, whatever eps is; alpha in torchattacks


@dataclass(frozen=True, kw_only=True)
class TorchattacksJitterConfig(TorchattacksPGDConfig):
    scale: float = 10.0
    std: float = 0.1


@dataclass(frozen=True, kw_only=True)
class TorchattacksAutoAttackConfig:
    queries: int = 5000  # of square, the last part; n_queries in torchattacks

    def __post_init__(self) -> None:
        if self.queries < 1:
            raise ValueError(f"queries must be >= 1, got {self.queries}")


class Wrapped(Attack):
    """Runs one of torchattacks' attacks, seeded, and leaves torch's generator as it was."""

    library = "torchattacks"

    @property
    def relative_step(self) -> float | None:
        """Return the absolute step as a fraction of eps, None where there is none."""
        step = getattr(self.config, "step_size", None)
        return None if step is None or self.threat.eps == 0 else step / self.threat.eps

    @property
    def cost(self) -> float | None:
        """A forward and a backward to the input each step; torchattacks takes no last look."""
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
        """Return what torchattacks returns; at eps 0, where its L2 attacks give NaN, the clean images."""
        if self.threat.eps == 0 or len(images) == 0:
            return images.clone()
        seed, devices = rng.seed(), [images.device] if images.is_cuda else []
        with torch.no_grad():
            num_classes = model(images[:1]).shape[1]
        # It prints when a model has no parameters; stdout is for tables.
        with torch.random.fork_rng(devices=devices), contextlib.redirect_stdout(sys.stderr):
            torch.manual_seed(seed)
            attack = self.build(model, num_classes, seed)
            attack.set_device(images.device)
            with torch.enable_grad():
                adv: Tensor = attack(images, labels)
        return adv.detach()


@ATTACKS.register("torchattacks-fgsm")
class TorchattacksFGSM(Wrapped):
    """torchattacks.FGSM."""

    norms = ("Linf",)

    @property
    def steps(self) -> int:
        """One step is the method."""
        return 1

    @property
    def relative_step(self) -> float:
        """The step is eps."""
        return 1.0

    @property
    def cost(self) -> float:
        """One forward and one backward."""
        return 2.0

    def build(self, model: nn.Module, num_classes: int, seed: int) -> Any:
        """Take nothing but eps."""
        return torchattacks.FGSM(model, eps=self.threat.eps)


@ATTACKS.register("torchattacks-pgd")
class TorchattacksPGD(Wrapped):
    """torchattacks.PGD: 10 steps of 2/255."""

    Config = TorchattacksPGDConfig
    norms = ("Linf",)

    def build(self, model: nn.Module, num_classes: int, seed: int) -> Any:
        """Keep the step absolute."""
        cfg = self.config
        return torchattacks.PGD(model, eps=self.threat.eps, alpha=cfg.step_size, steps=cfg.steps)


@ATTACKS.register("torchattacks-pgdl2")
class TorchattacksPGDL2(Wrapped):
    """torchattacks.PGDL2: 10 steps of 0.2."""

    Config = TorchattacksPGDL2Config
    norms = ("L2",)
    fixed_norm = "L2"

    def build(self, model: nn.Module, num_classes: int, seed: int) -> Any:
        """Keep the step absolute."""
        cfg = self.config
        return torchattacks.PGDL2(model, eps=self.threat.eps, alpha=cfg.step_size, steps=cfg.steps)


@ATTACKS.register("torchattacks-jitter")
class TorchattacksJitter(Wrapped):
    """torchattacks.Jitter: 10 steps of 2/255."""

    Config = TorchattacksJitterConfig
    norms = ("Linf",)

    def build(self, model: nn.Module, num_classes: int, seed: int) -> Any:
        """Keep the step absolute."""
        cfg = self.config
        return torchattacks.Jitter(
            model, eps=self.threat.eps, alpha=cfg.step_size, steps=cfg.steps, scale=cfg.scale, std=cfg.std
        )


@ATTACKS.register("torchattacks-autoattack")
class TorchattacksAutoAttack(Wrapped):
    """torchattacks.AutoAttack: 10 iterations, not the reference's 100."""

    Config = TorchattacksAutoAttackConfig

    @property
    def budget(self) -> AttackBudget:
        """10 iterations, far below AutoAttack's 100."""
        queries = self.config.queries
        parts = f"apgd-ce 10, apgd-t 10, fab-t 10, square {queries}"
        return AttackBudget(parts) if queries >= 5000 else AttackBudget(f"reduced: {parts}", reduced=True)

    @property
    def cost(self) -> float:
        """10 iterations of each part, for every other class in two of them, and square's looks."""
        return 22 + ((self.num_classes or 10) - 1) * (22 + 32) + float(self.config.queries)

    def build(self, model: nn.Module, num_classes: int, seed: int) -> Any:
        """Tell it the class count, which it would take for 10."""
        norm, eps = self.threat.norm, self.threat.eps
        attack = torchattacks.AutoAttack(model, norm=norm, eps=eps, n_classes=num_classes, seed=seed)
        ensemble = attack._autoattack.attacks
        if num_classes < 4:
            ensemble[:] = [a for a in ensemble if not isinstance(a, torchattacks.APGDT)]
        ensemble[-1].n_queries = self.config.queries
        return attack
