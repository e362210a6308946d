"""AutoAttack: APGD on the cross-entropy, targeted APGD, targeted FAB and Square, each on the images that survived.

Attack `pyautoattack` runs the authors' code. It is slower, and tests compare `autoattack` with it.

Paper:   Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
         attacks", ICML 2020, arXiv:2003.01690.
         L1: Croce and Hein, "Mind the box: l1-APGD for sparse adversarial attacks on image classifiers", ICML 2021,
         arXiv:2103.01208: five restarts of APGD on the cross-entropy, and five targets of APGD.
Code:    github.com/fra31/auto-attack, on PyPI as pyautoattack; same order and budgets as its standard version. A test
         compares outcomes per image.
Differs: models with fewer than 10 classes get fewer targets. With 3 classes the untargeted DLR loss replaces the
         targeted one, which needs 4. With 2 classes no DLR loss is used. `budget` reports this.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robobench.api import ATTACKS, DEFAULT_OPTIONS, Attack, AttackBudget, AttackOptions, Ensemble, KeyedRng

STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")


@dataclass(frozen=True, kw_only=True)
class AutoAttackConfig:
    known: ClassVar[tuple[str, ...]] = (*STANDARD, "apgd-dlr", "screen")
    attacks: tuple[str, ...] = STANDARD
    steps: int = 100  # of each APGD and FAB run
    targets: int = 9  # number of target classes of apgd-t and fab-t; at most all wrong classes
    queries: int = 5000  # of square

    def __post_init__(self) -> None:
        wrong = [name for name in self.attacks if name not in self.known]
        if wrong or not self.attacks:
            raise ValueError(f"attacks must be some of {', '.join(self.known)}, got {', '.join(wrong) or 'none'}")
        if min(self.steps, self.targets, self.queries) < 1:
            raise ValueError(
                f"steps, targets and queries must be >= 1, got {self.steps}, {self.targets}, {self.queries}"
            )


@dataclass(frozen=True, kw_only=True)
class PyAutoAttackConfig(AutoAttackConfig):
    known = (*STANDARD, "apgd-dlr", "fab")


class AutoAttackBase(Attack):
    """Presets, budget and warnings of both implementations."""

    norms: ClassVar[tuple[str, ...]] = ("Linf", "L2", "L1")
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {"attacks": ("apgd-ce", "apgd-t"), "steps": 5, "targets": 1},
    }

    @property
    def budget(self) -> AttackBudget:
        """ "standard", or the components and their budgets. Exact once the number of classes is known."""
        cfg: AutoAttackConfig = self.config
        attacks, targets = usable_attacks(cfg, self.num_classes)
        if cfg == type(cfg)() and attacks == STANDARD:
            if targets == cfg.targets:
                return AttackBudget("standard", standard=True)
            return AttackBudget(f"standard with {targets} targets")
        restarts, apgd_targets = apgd_runs(self.threat.norm, targets)
        size: dict[str, Any] = {
            "screen": "",
            "apgd-t": f"{cfg.steps}x{apgd_targets}",
            "fab-t": f"{cfg.steps}x{targets}",
            "square": cfg.queries,
        }
        if restarts > 1:
            size |= {name: f"{cfg.steps}x{restarts}" for name in ("apgd-ce", "apgd-dlr")}
        less = cfg.steps < 100 or cfg.targets < 9 or cfg.queries < 5000 or not {*STANDARD} <= {*attacks}
        parts = ", ".join(f"{name} {size.get(name, cfg.steps)}".strip() for name in attacks)
        return AttackBudget(f"{'reduced' if less else 'extended'}: {parts}", reduced=less)

    def warnings(self) -> list[str]:
        """Warn that a reduced version is not comparable with published AutoAttack results."""
        if not self.budget.reduced:
            return []
        return [f"attack '{self.name}' is {self.budget.text}; do not compare it with published AutoAttack results"]


@ATTACKS.register("autoattack")
class AutoAttack(AutoAttackBase, Ensemble):
    """AutoAttack, standard version."""

    Config = AutoAttackConfig
    version = 4  # a robust image costs 9,730 passes, 24 under the quick preset
    component_names = (*AutoAttackConfig.known, "apgd-pm", "apgd-malt")

    def component_configs(self) -> list[tuple[str, Mapping[str, Any]]]:
        """Return the components that can attack a model of `num_classes`."""
        cfg: AutoAttackConfig = self.config
        attacks, targets = usable_attacks(cfg, self.num_classes)
        restarts, apgd_targets = apgd_runs(self.threat.norm, targets)
        values: dict[str, Mapping[str, Any]] = {
            "apgd-t": {"steps": cfg.steps, "targets": apgd_targets},
            "fab-t": {"steps": cfg.steps, "targets": targets},
            "square": {"queries": cfg.queries, "rescale_schedule": False},
        }
        values["screen"] = {}
        return [(name, values.get(name, {"steps": cfg.steps, "restarts": restarts})) for name in attacks]


@ATTACKS.register("autoattack-l2")
class AutoAttackL2(AutoAttack):
    """AutoAttack, standard version, in L2."""

    norms = ("L2",)
    fixed_norm = "L2"


@ATTACKS.register("autoattack-l1")
class AutoAttackL1(AutoAttack):
    """AutoAttack, standard version, in L1."""

    norms = ("L1",)
    fixed_norm = "L1"


@ATTACKS.register("pyautoattack")
class PyAutoAttack(AutoAttackBase):
    """AutoAttack by the authors' code (package pyautoattack)."""

    Config = PyAutoAttackConfig
    library = "pyautoattack"
    early_stop = True
    version = 1  # a robust image costs 9,774 passes, 37 under the quick preset

    @property
    def cost(self) -> float:
        """Eight forwards for the package's checks, then each component with the forwards before and after it."""
        cfg: AutoAttackConfig = self.config
        attacks, targets = usable_attacks(cfg, self.num_classes)
        restarts, apgd_targets = apgd_runs(self.threat.norm, targets)
        apgd, fab = 2.0 * (cfg.steps + (3 if self.threat.norm == "L1" else 1)), 3.0 * cfg.steps + 2
        passes = {
            "apgd-ce": restarts * apgd + 2,
            "apgd-dlr": restarts * apgd + 2,
            "apgd-t": apgd_targets * (apgd + 1) + 2,
            "fab-t": targets * (fab + 1) + 2,
            "fab": fab + 2 + cfg.steps * ((self.num_classes or 10) - 1),  # one backward per class
            "square": cfg.queries + 4.0,
        }
        return 8 + sum(passes[name] for name in attacks)

    def attack_full_budget(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        rng: KeyedRng,
        options: AttackOptions = DEFAULT_OPTIONS,
    ) -> Tensor:
        """Return the package's images: unchanged if no component succeeded, or if misclassified when clean."""
        if self.threat.eps == 0 or len(images) == 0:
            return images.clone()
        with torch.no_grad():
            self.num_classes = model(images[:1]).shape[1]
        devices = [images.device] if images.is_cuda else []
        with torch.random.fork_rng(devices=devices), restore_reference_globals():  # the package seeds torch
            reference = self._reference(model, images.device, rng.seed())
            adv: Tensor = reference.run_standard_evaluation(images, labels, batch_size=len(images))[0]
        return adv.detach()

    def _reference(self, model: nn.Module, device: torch.device, seed: int) -> Any:
        """Build the package's AutoAttack. The default config gives its standard version."""
        import pyautoattack
        from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted

        cfg, ball = self.config, {"norm": self.threat.norm, "eps": self.threat.eps, "device": device}
        attacks, targets = usable_attacks(cfg, self.num_classes)
        reference = pyautoattack.AutoAttack(model, version="custom", attacks=list(attacks), seed=seed, **ball)
        # APGD computes its step schedule from n_iter in the constructor.
        restarts, apgd_targets = apgd_runs(self.threat.norm, targets)
        shared = {"n_iter": cfg.steps, "use_largereps": self.threat.norm == "L1", "logger": reference.logger, **ball}
        reference.apgd = APGDAttack(model, n_restarts=restarts, **shared)
        reference.apgd_targeted = APGDAttack_targeted(model, n_target_classes=apgd_targets, **shared)
        fab = reference.fab
        fab.n_restarts, fab.n_iter, fab.n_target_classes = 1, cfg.steps, targets
        reference.square.n_queries = cfg.queries
        return reference


def usable_attacks(config: AutoAttackConfig, num_classes: int | None) -> tuple[tuple[str, ...], int]:
    """Return the attacks and the number of targets that suit a model of `num_classes` (None: many classes)."""
    attacks, targets = config.attacks, config.targets
    if num_classes is None:
        return attacks, targets
    if num_classes == 3:  # the targeted DLR loss needs the fourth largest logit, the untargeted one the third
        attacks = tuple("apgd-dlr" if name == "apgd-t" else name for name in attacks)
    if num_classes <= 2:
        attacks = tuple(name for name in attacks if name not in ("apgd-t", "apgd-dlr")) or ("apgd-ce",)
    return tuple(dict.fromkeys(attacks)), min(targets, num_classes - 1)


def apgd_runs(norm: str, targets: int) -> tuple[int, int]:
    """Return the restarts of untargeted APGD and the target classes of targeted APGD, of `targets` in all."""
    return (5, min(targets, 5)) if norm == "L1" else (1, targets)


@contextmanager
def restore_reference_globals() -> Iterator[None]:
    """Reset the package's counts of dynamic-defense calls, which are global, and restore the tracer afterwards."""
    from pyautoattack import checks

    tracer = sys.gettrace()
    checks.funcs.update(dict.fromkeys(checks.funcs, 0))
    try:
        yield
    finally:
        sys.settrace(tracer)
