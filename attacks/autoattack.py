"""AutoAttack: APGD on the cross-entropy, targeted APGD and FAB, then Square, on whatever is still right; and the
reference, the authors' own code, which is slower and against which ours is tested.

Paper:   Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse
         parameter-free attacks", ICML 2020, arXiv:2003.01690.
Code:    order and budgets are those of the standard version of github.com/fra31/auto-attack, on the package index
         pyautoattack; the attack of that name reimplements nothing. Parity of verdicts is tested.
Differs: fewer targets where the model has fewer than 10 classes; with 3 classes the untargeted DLR loss
         stands in for the targeted one, which needs 4; with 2 there is no DLR loss. `budget` says so.
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
    known: ClassVar[tuple[str, ...]] = (*STANDARD, "apgd-dlr")
    attacks: tuple[str, ...] = STANDARD
    steps: int = 100  # of each APGD and FAB run
    targets: int = 9  # classes that apgd-t and fab-t aim at, at most one less than the model has
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
    known = (*AutoAttackConfig.known, "fab")


class Budgeted(Attack):
    """What both have in common: how much of the standard version is run."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {"attacks": ("apgd-ce", "apgd-t"), "steps": 5, "targets": 1},
    }

    @property
    def budget(self) -> AttackBudget:
        """ "standard", or what is run instead; exact once a model's number of classes is known."""
        cfg: AutoAttackConfig = self.config
        attacks, targets = allowed(cfg, self.num_classes)
        if cfg == type(cfg)() and attacks == STANDARD:
            if targets == cfg.targets:
                return AttackBudget("standard", standard=True)
            return AttackBudget(f"standard with {targets} targets")
        size = {"apgd-t": f"{cfg.steps}x{targets}", "fab-t": f"{cfg.steps}x{targets}", "square": cfg.queries}
        less = cfg.steps < 100 or cfg.targets < 9 or cfg.queries < 5000 or not {*STANDARD} <= {*attacks}
        parts = ", ".join(f"{name} {size.get(name, cfg.steps)}" for name in attacks)
        return AttackBudget(f"{'reduced' if less else 'extended'}: {parts}", reduced=less)

    def warnings(self) -> list[str]:
        """Say that a reduced version is not what others report as AutoAttack."""
        if not self.budget.reduced:
            return []
        return [f"attack '{self.name}' is {self.budget.text}; do not compare it with published AutoAttack figures"]


@ATTACKS.register("autoattack")
class AutoAttack(Budgeted, Ensemble):
    """The standard ensemble, parameter-free."""

    Config = AutoAttackConfig
    version = 3  # an image that withstands everything takes 9,730 passes, 24 under the quick preset
    component_names = AutoAttackConfig.known

    def component_configs(self) -> list[tuple[str, Mapping[str, Any]]]:
        """Return the parts that the last model's number of classes allows."""
        cfg: AutoAttackConfig = self.config
        attacks, targets = allowed(cfg, self.num_classes)
        aimed = {"steps": cfg.steps, "targets": targets}
        square = {"queries": cfg.queries, "rescale_schedule": False}
        values: dict[str, Mapping[str, Any]] = {"apgd-t": aimed, "fab-t": aimed, "square": square}
        return [(name, values.get(name, {"steps": cfg.steps})) for name in attacks]


@ATTACKS.register("autoattack-l2")
class AutoAttackL2(AutoAttack):
    """The standard ensemble, in L2."""

    norms = ("L2",)
    fixed_norm = "L2"


@ATTACKS.register("pyautoattack")
class PyAutoAttack(Budgeted):
    """The reference AutoAttack, by the authors' own code."""

    Config = PyAutoAttackConfig
    library = "pyautoattack"
    early_stop = True
    version = 1  # an image that withstands everything takes 9,774 passes, 37 under the quick preset

    @property
    def cost(self) -> float:
        """Eight forwards of checks, then each part with its own looks before and after."""
        cfg: AutoAttackConfig = self.config
        attacks, targets = allowed(cfg, self.num_classes)
        apgd, fab = 2.0 * (cfg.steps + 1), 3.0 * cfg.steps + 2
        passes = {
            "apgd-ce": apgd + 2,
            "apgd-dlr": apgd + 2,
            "apgd-t": targets * (apgd + 1) + 2,
            "fab-t": targets * (fab + 1) + 2,
            "fab": fab + 2 + cfg.steps * ((self.num_classes or 10) - 1),  # a backward for every class
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
        """Return the reference's images; those wrong when clean or never fooled come back unchanged."""
        if self.threat.eps == 0 or len(images) == 0:
            return images.clone()
        with torch.no_grad():
            self.num_classes = model(images[:1]).shape[1]
        devices = [images.device] if images.is_cuda else []
        with torch.random.fork_rng(devices=devices), fresh_checks():  # the reference seeds torch itself
            reference = self._reference(model, images.device, rng.seed())
            adv: Tensor = reference.run_standard_evaluation(images, labels, batch_size=len(images))[0]
        return adv.detach()

    def _reference(self, model: nn.Module, device: torch.device, seed: int) -> Any:
        """Build the authors' object; its standard version where the config is the default."""
        import pyautoattack
        from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted

        cfg, ball = self.config, {"norm": self.threat.norm, "eps": self.threat.eps, "device": device}
        attacks, targets = allowed(cfg, self.num_classes)
        it = pyautoattack.AutoAttack(model, version="custom", attacks=list(attacks), seed=seed, **ball)
        # Built anew because APGD's step schedule is computed from n_iter on construction.
        it.apgd = APGDAttack(model, n_iter=cfg.steps, logger=it.logger, **ball)
        it.apgd_targeted = APGDAttack_targeted(
            model, n_iter=cfg.steps, n_target_classes=targets, logger=it.logger, **ball
        )
        it.fab.n_restarts, it.fab.n_iter, it.fab.n_target_classes = 1, cfg.steps, targets
        it.square.n_queries = cfg.queries
        return it


def allowed(config: AutoAttackConfig, num_classes: int | None) -> tuple[tuple[str, ...], int]:
    """Return the attacks and the number of targets that a model of `num_classes` allows (None: many)."""
    attacks, targets = config.attacks, config.targets
    if num_classes is None:
        return attacks, targets
    if num_classes == 3:  # the targeted DLR loss divides by the fourth largest logit, the other by the third
        attacks = tuple("apgd-dlr" if name == "apgd-t" else name for name in attacks)
    if num_classes <= 2:
        attacks = tuple(name for name in attacks if name not in ("apgd-t", "apgd-dlr")) or ("apgd-ce",)
    return tuple(dict.fromkeys(attacks)), min(targets, num_classes - 1)


@contextmanager
def fresh_checks() -> Iterator[None]:
    """Keep the reference's test for dynamic defenses from leaking: its counts and its tracer are global."""
    from pyautoattack import checks

    tracer = sys.gettrace()
    checks.funcs.update(dict.fromkeys(checks.funcs, 0))
    try:
        yield
    finally:
        sys.settrace(tracer)
