"""AutoAttack: APGD on the cross-entropy, targeted APGD and FAB, then Square, on whatever is still right.

Paper:   Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
         parameter-free attacks", ICML 2020, arXiv:2003.01690.
Code:    order and budgets are those of the standard version of github.com/fra31/auto-attack, which the attack
         `pyautoattack` runs; parity of verdicts is tested.
Differs: fewer targets where the model has fewer than 10 classes; with 3 classes the untargeted DLR loss
         stands in for the targeted one, which needs 4; with 2 there is no DLR loss. `budget` says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from robobench.api import ATTACKS
from robobench.ensemble import Ensemble

STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
KNOWN = (*STANDARD, "apgd-dlr")


@dataclass(frozen=True, kw_only=True)
class AutoAttackConfig:
    attacks: tuple[str, ...] = STANDARD
    steps: int = 100  # of each APGD and FAB run
    targets: int = 9  # classes that apgd-t and fab-t aim at, at most one less than the model has
    queries: int = 5000  # of square

    def __post_init__(self) -> None:
        wrong = [name for name in self.attacks if name not in KNOWN]
        if wrong or not self.attacks:
            raise ValueError(f"attacks must be some of {', '.join(KNOWN)}, got {', '.join(wrong) or 'none'}")
        if min(self.steps, self.targets, self.queries) < 1:
            raise ValueError(
                f"steps, targets and queries must be >= 1, got {self.steps}, {self.targets}, {self.queries}"
            )


@ATTACKS.register("autoattack")
class AutoAttack(Ensemble):
    """The standard ensemble, parameter-free."""

    Config = AutoAttackConfig
    version = 2
    uses = KNOWN
    # 24 passes an image that withstands everything; the standard version makes 9,730.
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {"attacks": ("apgd-ce", "apgd-t"), "steps": 5, "targets": 1},
    }

    def members(self) -> list[tuple[str, Mapping[str, Any]]]:
        """Return the parts that the last model's number of classes allows."""
        cfg: AutoAttackConfig = self.config
        attacks, targets = usable(cfg, self.num_classes)
        aimed = {"steps": cfg.steps, "targets": targets}
        values: dict[str, Mapping[str, Any]] = {"apgd-t": aimed, "fab-t": aimed, "square": {"queries": cfg.queries}}
        return [(name, values.get(name, {"steps": cfg.steps})) for name in attacks]

    @property
    def budget(self) -> str:
        """Say "standard", or what is run instead; complete once a model's class count has been seen."""
        cfg: AutoAttackConfig = self.config
        attacks, targets = usable(cfg, self.num_classes)
        if cfg == AutoAttackConfig() and attacks == STANDARD:
            return "standard"
        size = {"apgd-t": f"{cfg.steps}x{targets}", "fab-t": f"{cfg.steps}x{targets}", "square": cfg.queries}
        less = cfg.steps < 100 or cfg.targets < 9 or cfg.queries < 5000 or not {*STANDARD} <= {*attacks}
        parts = ", ".join(f"{name} {size.get(name, cfg.steps)}" for name in attacks)
        return f"{'reduced' if less else 'extended'}: {parts}"

    def warnings(self) -> list[str]:
        """Say that a reduced version is not what others report as AutoAttack."""
        if not self.budget.startswith("reduced"):
            return []
        return [f"attack '{self.name}' is {self.budget}; do not compare it with published AutoAttack figures"]


@ATTACKS.register("autoattack-l2")
class AutoAttackL2(AutoAttack):
    """The standard ensemble, in L2."""

    norms = ("L2",)
    own_norm = "L2"


def usable(config: AutoAttackConfig, num_classes: int | None) -> tuple[tuple[str, ...], int]:
    """Return the attacks and the number of targets that a model of `num_classes` allows (None: many)."""
    attacks, targets = config.attacks, config.targets
    if num_classes is None:
        return attacks, targets
    if num_classes == 3:  # the targeted DLR loss divides by the fourth largest logit, the other by the third
        attacks = tuple("apgd-dlr" if name == "apgd-t" else name for name in attacks)
    if num_classes <= 2:
        attacks = tuple(name for name in attacks if name not in ("apgd-t", "apgd-dlr")) or ("apgd-ce",)
    return tuple(dict.fromkeys(attacks)), min(targets, num_classes - 1)
