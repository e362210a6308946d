"""AutoAttack for models with random outputs: APGD on the cross-entropy and on the DLR loss, over 20 passes a gradient.

Paper:   Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
         attacks", ICML 2020, arXiv:2003.01690, section 5 (randomized defenses).
Code:    github.com/fra31/auto-attack, version "rand"; same order and budgets, one restart.
Differs: an image is judged by the votes of fresh passes (`--verdict`, by default the majority of 20). The code takes
         one pass; `--verdict 1/1` does so too. L1 keeps APGD's three balls. Models with fewer than 3 classes get no DLR
         loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from robobench.api import ATTACKS, AttackBudget, Ensemble


@dataclass(frozen=True, kw_only=True)
class AutoAttackRandConfig:
    steps: int = 100  # of each APGD run

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be >= 1, got {self.steps}")


@ATTACKS.register("autoattack-rand")
class AutoAttackRand(Ensemble):
    """AutoAttack, version rand: for models with random outputs."""

    Config = AutoAttackRandConfig
    eot = 20
    norms = ("Linf", "L2", "L1")
    component_names = ("apgd-ce", "apgd-dlr")
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"quick": {"steps": 10}}

    def component_configs(self) -> list[tuple[str, Mapping[str, Any]]]:
        """Return the components that can attack a model of `num_classes`."""
        names = self.component_names if (self.num_classes or 10) > 2 else ("apgd-ce",)
        return [(name, {"steps": self.config.steps}) for name in names]

    @property
    def budget(self) -> AttackBudget:
        """The components and their steps."""
        steps = self.config.steps
        text = ", ".join(f"{name} {steps}" for name, _ in self.component_configs())
        return AttackBudget(f"reduced: {text}" if steps < 100 else text, reduced=steps < 100)
