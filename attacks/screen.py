"""Screening: the attacks that find most of what AutoAttack finds, with at most 1,500 passes per image (of 9,730).

Robust accuracy under screening is an upper bound like any other, but not AutoAttack's: tables name its budget, and it
is not ranked beside AutoAttack. `--set autoattack.attacks=screen,apgd-ce,apgd-t,fab-t,square` lets AutoAttack start
from what screening leaves.

Paper:   the combination is robobench's. APGD: arXiv:2003.01690. Probability margin loss: Xie et al., 2024,
         arXiv:2411.15210. Order of the targets: Melamed et al., NeurIPS 2024, arXiv:2407.02240. Square:
         arXiv:1912.00049.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from robobench.api import ATTACKS, AttackBudget, Ensemble

CANDIDATES = 20  # classes whose distance is computed, to order the targets


@dataclass(frozen=True, kw_only=True)
class ScreenConfig:
    steps: int = 100  # of each APGD run
    targets: int = 4  # number of target classes, the closest first; half of them if masking is suspected
    queries: int = 600  # of square, if masking is suspected

    def __post_init__(self) -> None:
        if min(self.steps, self.targets, self.queries) < 1:
            raise ValueError(
                f"steps, targets and queries must be >= 1, got {self.steps}, {self.targets}, {self.queries}"
            )


@ATTACKS.register("screen")
class Screen(Ensemble):
    """Screening before AutoAttack, at most 1,500 passes an image."""

    Config = ScreenConfig
    norms = ("Linf", "L2", "L1")
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"quick": {"steps": 5, "targets": 1, "queries": 20}}
    component_names = ("apgd-ce", "apgd-pm", "apgd-malt", "square")
    adapts_to_masking = True

    @property
    def budget(self) -> AttackBudget:
        """The components. Reduced beside AutoAttack, whatever the settings."""
        cfg: ScreenConfig = self.config
        parts = f"apgd-ce {cfg.steps}, apgd-pm {cfg.steps}, apgd-malt {cfg.steps}x{cfg.targets}"
        masked = f"{cfg.steps}x{self._half} and square {cfg.queries} if masking is suspected"
        return AttackBudget(f"screening: {parts} ({masked})", reduced=True)

    @property
    def cost(self) -> float:
        """The larger cost, with or without signs of masking."""
        both = []
        for masking in (False, True):
            other = Screen(self.config, self.threat)
            other.num_classes, other.masking_suspected = self.num_classes, masking
            both.append(1.0 + sum(component.cost or 0.0 for component in other.components))
        return max(both)

    @property
    def _half(self) -> int:
        return -(-int(self.config.targets) // 2)

    def component_configs(self) -> list[tuple[str, Mapping[str, Any]]]:
        """Return the components that can attack a model of `num_classes`."""
        cfg: ScreenConfig = self.config
        classes = self.num_classes or 1000
        targets = min(self._half if self.masking_suspected else cfg.targets, classes - 1)
        malt = {"steps": cfg.steps, "targets": targets, "candidates": max(CANDIDATES, targets)}
        parts: list[tuple[str, Mapping[str, Any]]] = [(name, {"steps": cfg.steps}) for name in ("apgd-ce", "apgd-pm")]
        if classes > 3:  # the targeted DLR loss needs the fourth largest logit
            parts.append(("apgd-malt", malt))
        if self.masking_suspected:
            parts.append(("square", {"queries": cfg.queries}))
        return parts
