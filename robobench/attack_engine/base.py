"""Base classes of attacks. A plug-in subclasses one of them and registers it with ATTACKS."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robobench.attack_engine.loop import run_iterative_attack
from robobench.attack_engine.options import DEFAULT_OPTIONS, AttackOptions
from robobench.attack_engine.state import AttackResult, AttackState
from robobench.core.losses import is_misclassified
from robobench.core.memory import split_on_oom
from robobench.core.randomness import Randomness
from robobench.core.rng import KeyedRng
from robobench.core.threat import ThreatModel


@dataclass(frozen=True)
class AttackBudget:
    """How hard an attack tries: a text for tables, and two facts that decide about marks and rankings."""

    text: str
    reduced: bool = False  # other than the reference settings, and not known to be stronger
    standard: bool = False  # exactly the version that the literature reports, as for AutoAttack

    def adapted(self, randomness: Randomness | None, bpda: str | None) -> AttackBudget:
        """Return the budget of an adaptive attack, which names its votes and its replacement model."""
        how = [str(randomness)] if randomness else []
        how += [f"bpda {bpda}"] if bpda else []
        return AttackBudget("; ".join([self.text, *how]), self.reduced, self.standard and not how)


@dataclass(frozen=True, kw_only=True)
class NoConfig:
    """Config of an attack without settings."""


class Attack(ABC):
    """Base class: finds misclassified images inside a threat model.

    A subclass implements `attack_full_budget`. An attack that works in steps derives from `IterativeAttack` instead.
    """

    name: ClassVar[str]
    Config: ClassVar[type] = NoConfig
    version: ClassVar[int] = 1  # raise it with every change that moves the attack's numbers
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # preset name -> values of Config fields
    norms: ClassVar[tuple[str, ...]] = ("Linf", "L2")
    fixed_norm: ClassVar[str | None] = None  # set if the attack's name implies the norm
    early_stop: ClassVar[bool] = False  # white-box: an image leaves the batch at its first success
    library: ClassVar[str | None] = None  # package that does the work; its version is part of a result's key
    component_names: ClassVar[tuple[str, ...]] = ()  # attacks it may run; their code is part of a result's key
    spec_field: ClassVar[str | None] = None  # Config field set by the text after a colon, as in NAME:TEXT
    supports_bf16_search: ClassVar[bool] = False  # steps may run in bfloat16: they compare no losses
    supports_compile: ClassVar[bool] = False  # steps may use a compiled model: at most one gradient per forward pass
    finds_closest: ClassVar[bool] = False  # the result of a full budget is the closest adversarial example found
    eot: ClassVar[int] = 1  # passes of a random model over which the reference settings average
    min_classes: ClassVar[int] = 2  # number of logits that the attack needs
    gradient_free: bool = False  # uses the model's outputs only; __init__ may set it from the config
    adapts_to_masking: ClassVar[bool] = False  # wants to know `masking_suspected`
    masking_suspected: bool = False  # quick checks of the model point to gradient masking; set before the attack
    num_classes: int | None = None  # of the data or of the last model seen; budget and cost may depend on it

    def __init__(self, config: Any, threat: ThreatModel) -> None:
        self.config, self.threat = config, threat

    @classmethod
    def why_unsupported(cls, threat: ThreatModel) -> str | None:
        """Return why this attack cannot be used with `threat`, or None."""
        if threat.norm in cls.norms:
            return None
        return f"attack '{cls.name}' has no {threat.norm} form; it has {', '.join(cls.norms)}"

    @property
    def budget(self) -> AttackBudget:
        """How hard the attack tries.

        By default the Config's values; the Config's defaults are the reference settings. A whole number below its
        default, such as steps or restarts, is named "reduced", any other difference except a larger whole number
        "changed". Both count as reduced. Empty texts are left out.
        """
        values = [(f, v) for f in fields(self.config) if (v := getattr(self.config, f.name)) != ""]
        counts = [(f.default, v) for f, v in values if type(v) is int and type(f.default) is int]
        fewer = any(value < default for default, value in counts)
        other = any(v != f.default for f, v in values if type(v) is not int and f.default is not MISSING)
        text = ", ".join(f"{f.name}={value}" for f, value in values) or "fixed"
        mark = "reduced: " if fewer else "changed: " if other else ""
        return AttackBudget(mark + text, reduced=bool(mark))

    @property
    def steps(self) -> int | None:
        """Gradient steps of one restart; 1 means a single-step attack, None that there is no such number."""
        return getattr(self.config, "steps", None)

    @property
    def components(self) -> tuple[Attack, ...]:
        """The attacks of an ensemble, in order; empty for any other attack."""
        return ()

    @property
    def relative_step(self) -> float | None:
        """Step size as a fraction of eps, if the attack has one."""
        return getattr(self.config, "relative_step", None)

    @property
    def cost(self) -> float | None:
        """Forward-equivalents for an image that no step succeeds on; None if unknown."""
        return None

    def warnings(self) -> list[str]:
        """Return what weakens the attack in this config, one line each. Shown once per run."""
        steps, step = getattr(self.config, "steps", None), self.relative_step
        if steps and step and steps > 1 and steps * step < (reach := self._max_start_distance()) - 1e-9:
            return [
                f"attack '{self.name}': {steps} steps of {step:g} eps reach {steps * step:g} eps in all; "
                f"below {reach} eps an image may be out of reach"
            ]
        return []

    def check_images(self, count: int, shape: tuple[int, ...]) -> None:  # noqa: B027
        """Raise RequestError if the attack cannot attack `count` images of a shape (C, H, W). Called at planning."""

    def _max_start_distance(self) -> int:
        """Return the largest possible distance between start and optimum, in units of eps."""
        return 2

    @abstractmethod
    def attack_full_budget(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        rng: KeyedRng,
        options: AttackOptions = DEFAULT_OPTIONS,
    ) -> Tensor:
        """Attack every image with the full budget, as for transfer examples.

        Args:
            model: in eval mode and without parameter gradients. Weights, buffers and mode must stay as they are.
            images: (B, C, H, W) in [0, 1].
            labels: (B,) int64.
            rng: source of all random numbers.
            options: pass them on to other attacks; most attacks do not need them.

        Returns:
            Images (B, C, H, W) inside the threat model.
        """

    def attack_early_stop(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        rng: KeyedRng,
        options: AttackOptions = DEFAULT_OPTIONS,
    ) -> AttackResult:
        """Attack for white-box accuracy: return images and success. Arguments as in `attack_full_budget`."""
        adv = self.attack_full_budget(model, images, labels, rng, options).detach()
        with torch.no_grad():
            logits = split_on_oom(f"attack '{self.name}'", model, adv, on_split=options.on_oom_split)
        return AttackResult(adv, is_misclassified(torch.cat(logits), labels))


class IterativeAttack(Attack):
    """Base class of attacks that work in steps. The core does early stopping, restarts and compaction.

    A subclass implements `start` and `step`; `prepare` and `finish` are optional. If its iterates may leave the ball it
    sets `iterates_leave_ball`: then only iterates inside the ball count, and `finish` must return images inside.
    """

    early_stop = True
    iterates_leave_ball: bool = False  # __init__ may set it from the threat model

    @property
    def steps(self) -> int:
        """Number of steps of one restart."""
        return int(self.config.steps)

    @property
    def restarts(self) -> int:
        """Number of restarts; each takes all steps."""
        return int(getattr(self.config, "restarts", 1))

    @property
    def cost(self) -> float | None:
        """One forward and one input gradient per step, and one forward after each restart."""
        return self.restarts * (2.0 * self.steps + 1)

    def _max_start_distance(self) -> int:
        """Return 2 for a random start, which may lie across the ball, and 1 for the clean image."""
        images, label = torch.full((1, 3, 8, 8), 0.5), torch.zeros(1, dtype=torch.long)
        try:
            start = self.start(images, label, KeyedRng.of(label, "max_start_distance"))
        except Exception:  # `start` may need `prepare`, which needs a model
            return 2
        return 1 if torch.equal(start.adv, images) else 2

    def prepare(self, model: nn.Module, images: Tensor) -> None:
        """Evaluate the model once before the first start; raise RequestError if it cannot be attacked."""

    @abstractmethod
    def start(self, images: Tensor, labels: Tensor, rng: KeyedRng) -> AttackState:
        """Return the state before the first step. `state.adv` must lie in the threat model."""

    @abstractmethod
    def step(self, model: nn.Module, state: AttackState) -> tuple[AttackState, Tensor]:
        """Take one step; return the new state and the logits (B, K) at the *old* `state.adv`."""

    def finish(self, state: AttackState, logits: Tensor) -> Tensor:
        """Return the result of a full budget, (B, C, H, W), given the logits (B, K) at `state.adv`."""
        return state.adv

    def attack_full_budget(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        rng: KeyedRng,
        options: AttackOptions = DEFAULT_OPTIONS,
    ) -> Tensor:
        """Spend the full budget on every image and return the results."""
        return run_iterative_attack(self, model, images, labels, rng, early_stop=False, options=options).adv

    def attack_early_stop(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        rng: KeyedRng,
        options: AttackOptions = DEFAULT_OPTIONS,
    ) -> AttackResult:
        """Remove an image from the batch at its first success."""
        return run_iterative_attack(self, model, images, labels, rng, early_stop=True, options=options)
