"""Gradient-masking diagnostics: signs that attacks fail on a model although it is not robust.

Every check uses images that the model classifies correctly when clean. `results.checks.CHECKS` lists the thresholds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robobench.attack_engine.base import Attack, IterativeAttack
from robobench.attack_engine.ensemble import Ensemble
from robobench.attack_engine.loop import run_iterative_attack
from robobench.core.losses import is_misclassified
from robobench.core.module_state import attack_mode
from robobench.core.rng import KeyedRng
from robobench.core.threat import ThreatModel
from robobench.errors import GradientError, RequestError
from robobench.evaluation.accuracy import attack_rng
from robobench.evaluation.model_checks import ModelChecker
from robobench.results.checks import CHECKS, Finding

LARGE = ThreatModel("Linf", 0.5)  # every image can become gray
LARGE_STEPS = 100
LAST_STEPS = 10  # over which the rise of the loss is measured; half of the steps if there are fewer than 20
MAX_RISE = 0.05  # over these steps, as a fraction of the whole range, for a converged attack
FULL_PASSES = 5  # over half of the images


@dataclass(frozen=True)
class AttackTrace:
    """Loss and success rate of an attack after 0, 1, 2, ... steps.

    Attributes:
        loss: mean cross-entropy over all attacked images.
        surviving_loss: the same over images that were never misclassified; None if there are none.
        success_rate: fraction of images misclassified so far.
    """

    attack: str
    norm: str
    eps: float
    loss: list[float]
    surviving_loss: list[float] | None
    success_rate: list[float]

    @property
    def rise(self) -> float | None:
        """Rise of the surviving loss over the last steps as a fraction of its range; None if no image survives."""
        if self.surviving_loss is None:
            return None
        best = torch.tensor(self.surviving_loss, dtype=torch.float64).cummax(0).values
        span, last = best[-1] - best[0], min(LAST_STEPS, len(best) // 2)
        return float((best[-1] - best[-1 - last]) / span) if span > 0 else 0.0


@dataclass(frozen=True)
class Diagnosis:
    """Result of every check, and the traces of the iterative attacks."""

    examples: int
    clean_accuracy: float
    findings: list[Finding]
    traces: list[AttackTrace] = field(default_factory=list)

    @property
    def flags(self) -> list[str]:
        """Names of the checks that were raised."""
        return [f.check.name for f in self.findings if f.raised]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "examples": self.examples,
            "clean_accuracy": self.clean_accuracy,
            "flags": self.flags,
            "findings": [f.as_dict() for f in self.findings],
            "traces": [asdict(trace) for trace in self.traces],
        }


def diagnose(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    attacks: Sequence[Attack],
    *,
    source: nn.Module | None = None,
    restarts: int = 5,
    noise_draws: int = 100,
    on_check: Callable[[str], None] = lambda what: None,
) -> Diagnosis:
    """Examine a model. Its weights, buffers and modes are restored.

    Args:
        model: (B, C, H, W) in [0, 1] -> logits (B, K), in the mode in which it is to be used.
        images: (B, C, H, W), some hundred.
        labels: (B,) int64, on the same device.
        attacks: at least one iterative attack with several gradient steps. One-step attacks, gradient-free attacks and
            ensembles add their checks. Radii of one norm are compared with each other.
        source: another model, for the transfer check.
        restarts: number of restarts; a second set of as many must find no further adversarial examples.
        noise_draws: number of random images per surviving image.
        on_check: called with what begins now.

    Raises:
        RequestError: no such iterative attack, or the model returns no logits.
        ThreatModelError: an attack left the ball.
    """
    many_step = [a for a in attacks if isinstance(a, IterativeAttack) and not a.gradient_free and a.steps > 1]
    if not many_step:
        raise RequestError("a diagnosis needs an iterative attack with several gradient steps; add one to --attacks")
    diagnostics = Diagnostics(model, images, labels, source, restarts, noise_draws, on_check)
    try:
        on_check("the model's outputs and gradients")
        if diagnostics.check_model():
            diagnostics.check_gradient_meaning([a.threat for a in many_step])
            for norm in dict.fromkeys(a.threat.norm for a in attacks):
                diagnostics.run_attacks([a for a in attacks if a.threat.norm == norm])
            diagnostics.check_large_eps(many_step[0])
    except GradientError as err:
        diagnostics.add("non-finite-gradients", True, str(err).split(",")[0])
    finally:
        diagnostics.restore_buffers()
    return diagnostics.diagnosis()


class Diagnostics(ModelChecker):
    """Runs the checks that need attacks, after those of the model alone."""

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        source: nn.Module | None,
        restarts: int,
        noise_draws: int,
        on_check: Callable[[str], None] = lambda what: None,
    ) -> None:
        super().__init__(model, images, labels, passes=FULL_PASSES, repeated=len(labels))
        self.source, self.restarts, self.noise_draws, self.on_check = source, restarts, noise_draws, on_check
        self.index = torch.arange(len(labels), device=labels.device)
        self.traces: list[AttackTrace] = []

    def diagnosis(self) -> Diagnosis:
        """Return one finding per check. It is raised if it was raised at least once."""
        merged = []
        for name, check in CHECKS.items():
            found = self.findings.get(name, [])
            raised = any(f.raised for f in found) if found else None
            text = "; ".join(f.measured for f in found if f.raised or not raised) or "not checked: " + NOT_CHECKED[name]
            merged.append(Finding(check, raised, text))
        return Diagnosis(len(self.labels), float(self.correct.float().mean()), merged, self.traces)

    def run_attacks(self, attacks: list[Attack]) -> None:
        """Run the checks of one norm. Some compare radii and steps; the others use the smallest radius."""
        surviving: dict[tuple[str, float], tuple[Attack, Tensor]] = {}  # of gradient attacks, by name and radius
        for attack in sorted(attacks, key=lambda a: a.threat.eps):
            if not attack.gradient_free and not attack.components:
                surviving[attack.name, attack.threat.eps] = attack, self.surviving_images(attack)
        self._compare_steps(surviving)
        self._compare_radii(surviving)
        smallest = min(a.threat.eps for a in attacks)
        here = [(a, left) for a, left in surviving.values() if a.threat.eps == smallest]
        iterative = [a for a, _ in here if isinstance(a, IterativeAttack) and a.steps > 1]
        ensembles = [a for a in attacks if a.components and a.threat.eps == smallest]
        left = self.run_ensembles(ensembles, torch.stack([self.correct, *(left for _, left in here)]).all(0))
        if iterative:
            random_start = [a for a in iterative if self.has_random_start(a)]
            if random_start:
                self.check_restarts(random_start[0], left)
            self.check_noise_and_transfer(iterative[0], left)
        if here or ensembles:  # otherwise there is no gradient attack to compare with
            self.check_black_box([a for a in attacks if a.gradient_free and a.threat.eps == smallest], left)

    def _compare_steps(self, surviving: dict[tuple[str, float], tuple[Attack, Tensor]]) -> None:
        """Compare one step with many at each radius, and check that the many-step attacks converged."""
        for eps in dict.fromkeys(eps for _, eps in surviving):
            here = [(a, left) for a, left in surviving.values() if a.threat.eps == eps]
            many = [int(left.sum()) for a, left in here if a.steps != 1]
            one = [int(left.sum()) for a, left in here if a.steps == 1]
            threat = here[0][0].threat
            if many and one:
                text = f"more correct under many steps than under one ({min(many)} and {min(one)}) at {threat}"
                self.add_count("one-step-stronger", max(0, min(many) - min(one)), text)
            traces = [t for t in self.traces if (t.norm, t.eps) == (threat.norm, eps) and len(t.loss) > 2]
            if traces:
                self.check_convergence(traces)

    def _compare_radii(self, surviving: dict[tuple[str, float], tuple[Attack, Tensor]]) -> None:
        """Check that no many-step attack leaves more images correct at a larger radius."""
        for (name, eps), (attack, left) in surviving.items():
            smaller = [int(s.sum()) for (n, e), (_, s) in surviving.items() if n == name and e < eps]
            if smaller and attack.steps != 1:
                more = max(0, int(left.sum()) - min(smaller))
                text = f"more correct under {name} at {attack.threat} than at a smaller radius"
                self.add_count("not-monotone", more, text)

    def surviving_images(self, attack: Attack, among: Tensor | None = None) -> Tensor:
        """Attack the correctly classified images (or `among` (B,) bool); return which stay correct: (B,) bool."""
        left: Tensor = (self.correct if among is None else among).clone()
        if not bool(left.any()):
            return left
        self.on_check(f"{attack.name} at {attack.threat} on {int(left.sum())} images")
        if isinstance(attack, IterativeAttack) and not attack.iterates_leave_ball and among is None:
            left = self.trace_attack(attack)
            if attack.restarts == 1 or not bool(left.any()):
                return left
        images, labels = self.images[left], self.labels[left]
        with attack_mode(self.model):
            result = attack.attack_early_stop(self.model, images, labels, self.rng(attack, left))
        attack.threat.check(result.adv, images, f"attack '{attack.name}'")
        left[left.clone()] = ~result.success
        return left

    def rng(self, attack: Attack, rows: Tensor) -> KeyedRng:
        """Return an attack's generator for the images at rows (B,) bool."""
        return attack_rng(attack, self.index[rows], str(self.labels.device))

    def trace_attack(self, attack: IterativeAttack) -> Tensor:
        """Run all steps of an attack's first restart and keep its trace; return surviving images (B,) bool."""
        images, labels = self.images[self.correct], self.labels[self.correct]
        losses, success_rate = [], []
        success = torch.zeros_like(labels, dtype=torch.bool)
        with attack_mode(self.model):
            attack.prepare(self.model, images)
            state = attack.start(images, labels, self.rng(attack, self.correct).child("restart", 0))
            for step in range(attack.steps + 1):
                attack.threat.check(state.adv, images, f"attack '{attack.name}'")
                if step < attack.steps:
                    state, logits = attack.step(self.model, state)
                else:
                    with torch.no_grad():
                        logits = self.model(state.adv)
                losses.append(F.cross_entropy(logits.detach().double(), labels, reduction="none"))
                success |= is_misclassified(logits, labels)
                success_rate.append(float(success.float().mean()))
        paths = torch.stack(losses)  # (steps + 1, images)
        surviving_loss = None if bool(success.all()) else paths[:, ~success].mean(1).tolist()
        threat, loss = attack.threat, paths.mean(1).tolist()
        self.traces.append(AttackTrace(attack.name, threat.norm, threat.eps, loss, surviving_loss, success_rate))
        left = self.correct.clone()
        left[self.correct] = ~success
        return left

    def check_convergence(self, traces: list[AttackTrace]) -> None:
        """Check that one of the strongest attacks of a radius, those with the fewest survivors, has converged."""
        count = int(self.correct.sum())
        left = {id(t): round((1 - t.success_rate[-1]) * count) for t in traces}
        strongest = [t for t in traces if left[id(t)] < min(left.values()) + self.min_count]
        trace = min(strongest, key=lambda t: t.rise or 0.0)
        surviving = left[id(trace)]
        where = f"{trace.attack} at {ThreatModel(trace.norm, trace.eps)}"
        if trace.rise is None or surviving < self.min_count:
            self.add("loss-still-rising", False, f"{where} leaves {surviving} images")
        else:
            text = f"{where}: {trace.rise:.3f} of its range in the last {min(LAST_STEPS, len(trace.loss) // 2)} steps"
            self.add("loss-still-rising", trace.rise > MAX_RISE, text)

    def run_ensembles(self, attacks: list[Attack], left: Tensor) -> Tensor:
        """Run ensembles by component; return the images of `left` (B,) bool that survive their gradient attacks."""
        for attack in attacks:
            if isinstance(attack, Ensemble):
                attack.num_classes = self.num_classes  # decides which components can be used
            surviving = self.correct
            for component in attack.components:
                if not component.gradient_free:
                    surviving = self.surviving_images(component, surviving)
            for component in attack.components:
                if component.gradient_free:
                    lost = int(surviving.sum()) - int(self.surviving_images(component, surviving).sum())
                    text = f"{lost} of {len(self.labels)} images of {attack.name} at {attack.threat}"
                    self.add("black-box-lowers-ensemble", lost >= 2 and lost > 0.002 * len(self.labels), text)
            left = left & surviving
        return left

    def has_random_start(self, attack: IterativeAttack) -> bool:
        """Return whether two starts of an attack differ; otherwise restarts find nothing new."""
        images, labels, rng = self.images[:1], self.labels[:1], KeyedRng.of(self.index[:1], "has_random_start")
        with attack_mode(self.model):
            attack.prepare(self.model, images)
            one, two = (attack.start(images, labels, rng.child("again", n)).adv for n in (0, 1))
        return not torch.equal(one, two)

    def check_restarts(self, attack: IterativeAttack, left: Tensor) -> None:
        """Restart an attack on the surviving images, in two sets of `restarts` restarts."""
        self.on_check(f"{2 * self.restarts} restarts of {attack.name} at {attack.threat} on {int(left.sum())} images")
        found, surviving = [], left
        for number in range(2 * self.restarts):
            rows = self.index[surviving]
            if len(rows):
                single = _with_config(attack, attack.threat, restarts=1)
                images, labels = self.images[surviving], self.labels[surviving]
                rng = self.rng(attack, surviving).child("again", number)
                with attack_mode(self.model):
                    result = run_iterative_attack(single, self.model, images, labels, rng, early_stop=True)
                surviving = surviving.clone()
                surviving[rows[result.success]] = False
            found.append(len(rows) - int(surviving.sum()))
        first, second = sum(found[: self.restarts]), sum(found[self.restarts :])
        text = f"found by restarts {self.restarts + 1} to {2 * self.restarts} of {attack.name}, {first} by earlier ones"
        self.add_count("restarts-help", second, f"{text}, at {attack.threat}")

    def check_noise_and_transfer(self, attack: IterativeAttack, left: Tensor) -> None:
        """Try random noise and transfer examples on the surviving images."""
        self.on_check(f"random noise and transfer examples at {attack.threat} on {int(left.sum())} images")
        surviving = left.clone()
        for number in range(self.noise_draws):
            if bool(surviving.any()):
                rng = self.rng(attack, surviving).child("draw", number)
                adv = _random_on_surface(attack.threat, self.images[surviving], rng)
                surviving[surviving.clone()] = self.still_correct(adv, surviving)
        lost = int(left.sum()) - int(surviving.sum())
        self.add_count("noise-stronger", lost, f"found by {self.noise_draws} random draws at {attack.threat}")
        if self.source is not None and bool(left.any()):
            with attack_mode(self.source):
                images, labels, rng = self.images[left], self.labels[left], self.rng(attack, left)
                adv = attack.attack_full_budget(self.source, images, labels, rng).detach()
            lost = int((~self.still_correct(adv, left)).sum())
            self.add_count("transfer-stronger", lost, f"found by {attack.name} made on the transfer source")

    def still_correct(self, adv: Tensor, rows: Tensor) -> Tensor:
        """Return which images `adv`, made from `rows` (B,) bool, are classified correctly."""
        with attack_mode(self.model), torch.no_grad():
            return ~is_misclassified(self.model(adv), self.labels[rows])

    def check_black_box(self, attacks: list[Attack], left: Tensor) -> None:
        """Try gradient-free attacks on the surviving images."""
        for attack in attacks:
            lost = int(left.sum()) - int(self.surviving_images(attack, left).sum())
            self.add_count("black-box-stronger", lost, f"found only by {attack.name} at {attack.threat}")

    def check_large_eps(self, attack: IterativeAttack) -> None:
        """Run the many-step attack at Linf 0.5, where it must succeed on every image."""
        if type(attack).why_unsupported(LARGE) is not None:
            return
        strong = _with_config(attack, LARGE, steps=max(attack.steps, LARGE_STEPS))
        images, labels = self.images[self.correct], self.labels[self.correct]
        self.on_check(f"{attack.name} with {strong.steps} steps at {LARGE} on {len(images)} images")
        with attack_mode(self.model):
            rng = self.rng(attack, self.correct)
            success = run_iterative_attack(strong, self.model, images, labels, rng, early_stop=True).success
        text = f"under {attack.name}, {strong.steps} steps, at {LARGE}"
        self.add_count("survives-large-eps", int((~success).sum()), text)


def _with_config(attack: IterativeAttack, threat: ThreatModel, **changes: int) -> IterativeAttack:
    """Return the attack for another threat model. Changes that are no fields of its config are ignored."""
    known = {f.name for f in fields(attack.config)}
    config = replace(attack.config, **{name: value for name, value in changes.items() if name in known})
    return type(attack)(config, threat)


def _random_on_surface(threat: ThreatModel, images: Tensor, rng: KeyedRng) -> Tensor:
    """Draw random images on the ball's surface: a corner for Linf, any direction for L2 and L1."""
    return threat.project(images + threat.eps * threat.random_direction(images, rng), images)


_NO_ATTACK = "needs another attack (--attacks), or no gradient reaches the images"
NOT_CHECKED = dict.fromkeys(CHECKS, _NO_ATTACK) | {
    **dict.fromkeys(("batch-dependent", "grad-mode-dependent", "gradient-mismatch"), "random-output is raised"),
    **dict.fromkeys(("not-checked", "weak-source"), "in a run only"),
    "restarts-help": "needs a many-step attack with a random start (--attacks)",
    "transfer-stronger": "needs another model (--transfer-source)",
    "transfer-only": "needs the rows of a run with both protocols",
    "black-box-stronger": "needs a gradient-free attack (--attacks)",
    "black-box-lowers-ensemble": "needs an ensemble with a gradient-free component (--attacks)",
}
