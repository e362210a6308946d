"""Probes one network for signs that attacks fail on it for the wrong reasons (gradient masking).

Every probe works on images the network gets right when clean; `flags.CHECKS` says what each sign means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robobench.api import Attack, IterativeAttack
from robobench.ensemble import Ensemble
from robobench.errors import GradientError, RequestError
from robobench.evaluation import attack_noise, check_logits
from robobench.flags import BATCH, CHECKS, Finding, few, finding
from robobench.inner import frozen
from robobench.losses import errs, input_gradient, margin
from robobench.randomness import Noise
from robobench.search import search
from robobench.threat import ThreatModel

LARGE = ThreatModel("Linf", 0.5)  # every image can become gray
LARGE_STEPS = 100
LAST = 10  # steps over which a converged loss stands still, or the last half of fewer than 20
RISE = 0.05
GLANCES = 3  # passes of `examine` over the same images, to see randomness


@dataclass(frozen=True)
class Curve:
    """Loss and success against steps: entry i is after i steps, entry 0 at the start.

    `loss` is the mean cross-entropy over all attacked images, `surviving_loss` over those that never fell (None where
    all fell), `fallen` the fraction that fell so far.
    """

    attack: str
    norm: str
    eps: float
    loss: list[float]
    surviving_loss: list[float] | None
    fallen: list[float]

    @property
    def rise(self) -> float | None:
        """Gain of the surviving loss over the last steps, on the scale of its whole range; None where all fell."""
        if self.surviving_loss is None:
            return None
        best = torch.tensor(self.surviving_loss, dtype=torch.float64).cummax(0).values
        span, last = best[-1] - best[0], min(LAST, len(best) // 2)
        return float((best[-1] - best[-1 - last]) / span) if span > 0 else 0.0


@dataclass(frozen=True)
class Diagnosis:
    """Every check with what it saw, and the curves of the iterative attacks."""

    examples: int
    clean_accuracy: float
    findings: list[Finding]
    curves: list[Curve] = field(default_factory=list)

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
            "curves": [asdict(curve) for curve in self.curves],
        }


def diagnose(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    attacks: Sequence[Attack],
    *,
    source: nn.Module | None = None,
    restarts: int = 5,
    draws: int = 100,
) -> Diagnosis:
    """Examine a network; it leaves with weights, buffers and modes as they came.

    Args:
        model: (B, C, H, W) in [0, 1] -> logits (B, K), in the mode it is to be used in.
        images: (B, C, H, W), some hundred; labels (B,) int64, on the same device.
        attacks: at least one iterative attack of several gradient steps; one-step, gradient-free and ensemble attacks
            beside it add their checks. Radii of one norm are compared with each other.
        source: another network for the transfer check.
        restarts: the second set of as many must find nothing that the first missed.
        draws: random images a surviving image is tried with.

    Raises:
        RequestError: no such attack; the model returns no logits.
        ThreatModelError: an attack left its ball.
    """
    doctor = _Doctor(model, images, labels, source, restarts, draws)
    many = [a for a in attacks if isinstance(a, IterativeAttack) and not a.gradient_free and a.steps > 1]
    if not many:
        raise RequestError("a diagnosis needs an iterative attack of several gradient steps; add one to --attacks")
    try:
        if doctor.alone():
            for norm in dict.fromkeys(a.threat.norm for a in attacks):
                doctor.attacked([a for a in attacks if a.threat.norm == norm])
            doctor.large_eps(many[0])
    except GradientError as err:
        doctor.note("non-finite-gradients", True, str(err).split(",")[0])
    finally:
        doctor.restore()
    return doctor.diagnosis()


def examine(model: nn.Module, images: Tensor, labels: Tensor) -> list[Finding]:
    """Say what a network shows before any attack: five forwards of the images (B, C, H, W), and one backward.

    It leaves with weights, buffers and modes as they came, as do torch's generators.
    """
    doctor = _Doctor(model, images, labels, None, 0, 0)
    doctor.passes = GLANCES
    try:
        with torch.random.fork_rng():
            doctor.alone()
    finally:
        doctor.restore()
    return [f for found in doctor.seen.values() for f in found]


class _Doctor:
    """One examination: what was measured so far."""

    passes = 5  # over the same images

    def __init__(
        self, model: nn.Module, images: Tensor, labels: Tensor, source: nn.Module | None, restarts: int, draws: int
    ) -> None:
        self.model, self.images, self.labels, self.source = model, images, labels, source
        self.restarts, self.draws = restarts, draws
        self.index = torch.arange(len(labels), device=labels.device)
        self.right, self.num_classes = torch.zeros_like(labels, dtype=torch.bool), 0
        self.seen: dict[str, list[Finding]] = {}
        self.curves: list[Curve] = []
        self.buffers = {name: b.clone() for name, b in model.named_buffers()}
        self.enough = few(len(labels))

    @property
    def raised(self) -> set[str]:
        return {name for name, found in self.seen.items() if any(f.raised for f in found)}

    def note(self, name: str, raised: bool | None, measured: str) -> None:
        self.seen.setdefault(name, []).append(finding(name, raised, measured))

    def count(self, name: str, number: int, measured: str) -> None:
        self.note(name, number >= self.enough, f"{number} of {len(self.labels)} images {measured}")

    def diagnosis(self) -> Diagnosis:
        """One finding a check: raised if it was raised anywhere, what was measured side by side."""
        merged = []
        for name, check in CHECKS.items():
            found = self.seen.get(name, [])
            raised = any(f.raised for f in found) if found else None
            text = "; ".join(f.measured for f in found if f.raised or not raised) or "not looked at: " + MISSING[name]
            merged.append(Finding(check, raised, text))
        return Diagnosis(len(self.labels), float(self.right.float().mean()), merged, self.curves)

    def restore(self) -> None:
        for name, buffer in self.model.named_buffers():
            buffer.data.copy_(self.buffers[name])

    # --- the model by itself --------------------------------------------------------------------

    def alone(self) -> bool:
        """Contract and gradients; False where attacks would tell nothing."""
        self.contract()
        return "input-range" not in self.raised and self.gradients()

    def contract(self) -> None:
        """Mode, range, logits, determinism, independence of the batch."""
        modes = [name or "the model" for name, m in self.model.named_modules() if m.training]
        low, high = self.images.min().item(), self.images.max().item()
        self.note("input-range", not (low >= -1e-6 and high <= 1 + 1e-6), f"values in [{low:.3g}, {high:.3g}]")
        with torch.no_grad(), frozen(self.model):
            passes = [self.model(self.images).float() for _ in range(self.passes)]
        check_logits(passes[0], self.labels)
        moved = [n for n, b in self.model.named_buffers() if not torch.equal(b, self.buffers[n])]
        text = f"{len(modes)} modules in training mode" + (f", first {modes[0]}" if modes else "")
        text += f"; a forward pass changes {moved[0]}" if moved else ""
        self.note("train-mode", bool(modes or moved), text)
        logits = passes[0]
        off = (logits.sum(1) - 1).abs().max().item()
        probs = logits.max() < 1 + 1e-5 and logits.min() > -1e-5 and off < 1e-5
        shown = f"outputs in [{logits.min():.3g}, {logits.max():.3g}], sums within {off:.2g} of 1"
        self.note("softmax-output", bool(probs), shown)
        right = [int((p.argmax(1) == self.labels).sum()) for p in passes]
        apart = max(_apart(p, logits) for p in passes)
        shown = f"{min(right)} to {max(right)} images right, unit logits {apart:.2g} apart"
        self.note("random-output", min(right) != max(right) or apart > 1e-4, shown)
        if "random-output" not in self.raised:
            with torch.no_grad(), frozen(self.model):
                halves = [self.model(half).float() for half in self.images.flip(0).chunk(2)]
            apart = _apart(torch.cat(halves).flip(0), logits)
            self.note("batch-dependent", not apart <= BATCH, f"unit logits {apart:.2g} apart in halves, last first")
        self.right, self.num_classes = logits.argmax(1) == self.labels, logits.shape[1]

    def gradients(self) -> bool:
        """Gradient of the cross-entropy at clean images; False where none reaches the images at all."""
        images, labels = self.images[self.right], self.labels[self.right]
        if len(labels) == 0:
            return False

        def cross_entropy(adv: Tensor) -> Tensor:
            return F.cross_entropy(self.model(adv), labels, reduction="none")

        def beaten(adv: Tensor) -> Tensor:
            return margin(self.model(adv), labels)

        try:
            with frozen(self.model):
                grad = input_gradient(cross_entropy, images).flatten(1)
                zero = int((grad == 0).all(1).sum())
                flat = int((input_gradient(beaten, images).flatten(1) == 0).all(1).sum()) if zero else 0
        except RuntimeError as err:  # torch's own complaint about a graph that does not reach the images
            if not any(text in str(err) for text in ("grad", "used in the graph")):
                raise
            self.note("zero-gradients", True, "no gradient reaches the images: forward() cuts the graph")
            return False
        lost = int((~torch.isfinite(grad)).any(1).sum())
        self.count("zero-gradients", zero, "under cross-entropy" + (f", {flat} under the margin loss" if zero else ""))
        self.note("non-finite-gradients", lost > 0, f"{lost} of {len(self.labels)} images")
        return not lost

    # --- attacks on it --------------------------------------------------------------------------

    def attacked(self, attacks: list[Attack]) -> None:
        """All attacks of one norm: every radius for what compares radii and steps, the smallest for the rest."""
        standing: dict[tuple[str, float], tuple[Attack, Tensor]] = {}  # gradient attacks
        for attack in sorted(attacks, key=lambda a: a.threat.eps):
            if not attack.gradient_free and not attack.parts:
                standing[attack.name, attack.threat.eps] = attack, self.survivors(attack)
        for eps in dict.fromkeys(eps for _, eps in standing):
            here = [(a, left) for a, left in standing.values() if a.threat.eps == eps]
            many = [int(left.sum()) for a, left in here if a.steps != 1]
            one = [int(left.sum()) for a, left in here if a.steps == 1]
            if many and one:
                text = f"more right under many steps than under one ({min(many)} and {min(one)}) at {here[0][0].threat}"
                self.count("one-step-stronger", max(0, min(many) - min(one)), text)
            curves = [c for c in self.curves if (c.norm, c.eps) == (here[0][0].threat.norm, eps) and len(c.loss) > 2]
            if curves:
                self.converged(curves)
        for (name, eps), (attack, left) in standing.items():
            smaller = [int(s.sum()) for (n, e), (_, s) in standing.items() if n == name and e < eps]
            if smaller and attack.steps != 1:
                more = max(0, int(left.sum()) - min(smaller))
                self.count("not-monotone", more, f"more right under {name} at {attack.threat} than at a smaller radius")
        smallest = min(a.threat.eps for a in attacks)
        here = [(a, left) for a, left in standing.values() if a.threat.eps == smallest]
        searching = [a for a, _ in here if isinstance(a, IterativeAttack) and a.steps > 1]
        ensembles = [a for a in attacks if a.parts and a.threat.eps == smallest]
        left = self.ensembles(ensembles, torch.stack([self.right, *(left for _, left in here)]).all(0))
        if searching:
            drawn = [a for a in searching if self.begins_anew(a)]
            if drawn:
                self.again(drawn[0], left)
            self.around(searching[0], left)
        if here or ensembles:  # else there is nothing to be stronger than
            self.blind([a for a in attacks if a.gradient_free and a.threat.eps == smallest], left)

    def survivors(self, attack: Attack, among: Tensor | None = None) -> Tensor:
        """Attack the images that are right (or `among` (B,) bool), and say which stay right: (B,) bool."""
        left: Tensor = (self.right if among is None else among).clone()
        if not bool(left.any()):
            return left
        if isinstance(attack, IterativeAttack) and not attack.wanders and among is None:
            left = self.walk(attack)
            if attack.restarts == 1 or not bool(left.any()):
                return left
        images, labels = self.images[left], self.labels[left]
        with frozen(self.model):
            found = attack.find(self.model, images, labels, self.noise(attack, left))
        attack.threat.check(found.adv, images, f"attack '{attack.name}'")
        left[left.clone()] = ~found.fooled
        return left

    def noise(self, attack: Attack, rows: Tensor) -> Noise:
        return attack_noise(attack, self.index[rows], str(self.labels.device))

    def walk(self, attack: IterativeAttack) -> Tensor:
        """Run the whole path of an attack's first start, keep its curve, say which images never fell: (B,) bool."""
        images, labels = self.images[self.right], self.labels[self.right]
        losses, fallen = [], torch.zeros_like(labels, dtype=torch.bool)
        share = []
        with frozen(self.model):
            attack.prepare(self.model, images)
            state = attack.start(images, labels, self.noise(attack, self.right).child("restart", 0))
            for step in range(attack.steps + 1):
                attack.threat.check(state.adv, images, f"attack '{attack.name}'")
                if step < attack.steps:
                    state, logits = attack.step(self.model, state)
                else:
                    with torch.no_grad():
                        logits = self.model(state.adv)
                losses.append(F.cross_entropy(logits.detach().double(), labels, reduction="none"))
                fallen |= errs(logits, labels)
                share.append(float(fallen.float().mean()))
        paths = torch.stack(losses)  # (steps + 1, images)
        surviving = None if bool(fallen.all()) else paths[:, ~fallen].mean(1).tolist()
        curve = Curve(attack.name, attack.threat.norm, attack.threat.eps, paths.mean(1).tolist(), surviving, share)
        self.curves.append(curve)
        left = self.right.clone()
        left[self.right] = ~fallen
        return left

    def converged(self, curves: list[Curve]) -> None:
        """Whether one of the strongest searches of a radius (fewest images left, or one more) has come to an end."""
        count = int(self.right.sum())
        left = {id(c): round((1 - c.fallen[-1]) * count) for c in curves}
        strongest = [c for c in curves if left[id(c)] < min(left.values()) + self.enough]
        curve = min(strongest, key=lambda c: c.rise or 0.0)
        standing = left[id(curve)]
        where = f"{curve.attack} at {ThreatModel(curve.norm, curve.eps)}"
        if curve.rise is None or standing < self.enough:
            self.note("loss-still-rising", False, f"{where} leaves {standing} images")
        else:
            text = f"{where}: {curve.rise:.3f} of its range in the last {min(LAST, len(curve.loss) // 2)} steps"
            self.note("loss-still-rising", curve.rise > RISE, text)

    def ensembles(self, attacks: list[Attack], left: Tensor) -> Tensor:
        """Run ensembles member by member; return what their gradient attacks leave of `left`."""
        for attack in attacks:
            if isinstance(attack, Ensemble):
                attack.num_classes = self.num_classes  # some parts need several
            mine = self.right
            for part in attack.parts:
                if not part.gradient_free:
                    mine = self.survivors(part, mine)
            for part in attack.parts:
                if part.gradient_free:
                    lost = int(mine.sum()) - int(self.survivors(part, mine).sum())
                    shown = f"{lost} of {len(self.labels)} images of {attack.name} at {attack.threat}"
                    self.note("black-box-lowers-ensemble", lost >= 2 and lost > 0.002 * len(self.labels), shown)
            left = left & mine
        return left

    def begins_anew(self, attack: IterativeAttack) -> bool:
        """Say whether two starts of an attack differ; restarts of one from the clean image find nothing new."""
        images, labels, noise = self.images[:1], self.labels[:1], Noise.of(self.index[:1], "begins-anew")
        with frozen(self.model):
            attack.prepare(self.model, images)
            one, two = (attack.start(images, labels, noise.child("again", n)).adv for n in (0, 1))
        return not torch.equal(one, two)

    def again(self, attack: IterativeAttack, left: Tensor) -> None:
        """Restarts on the images that white-box attacks left."""
        found = []
        standing = left
        for number in range(2 * self.restarts):
            begun = self.index[standing]
            if len(begun):
                single = _with(attack, attack.threat, restarts=1)
                noise = self.noise(attack, standing).child("again", number)
                with frozen(self.model):
                    hit = search(single, self.model, self.images[standing], self.labels[standing], noise).fooled
                standing = standing.clone()
                standing[begun[hit]] = False
            found.append(len(begun) - int(standing.sum()))
        first, second = sum(found[: self.restarts]), sum(found[self.restarts :])
        text = f"found by restarts {self.restarts + 1} to {2 * self.restarts} of {attack.name}, {first} by those before"
        self.count("restarts-help", second, f"{text}, at {attack.threat}")

    def around(self, attack: IterativeAttack, left: Tensor) -> None:
        """Random draws and another network's examples on the images that white-box attacks left."""
        standing = left.clone()
        for number in range(self.draws):
            if bool(standing.any()):
                adv = _draw(attack.threat, self.images[standing], self.noise(attack, standing).child("draw", number))
                standing[standing.clone()] = self.agrees(adv, standing)
        lost = int(left.sum()) - int(standing.sum())
        self.count("noise-stronger", lost, f"found by {self.draws} random draws at {attack.threat}")
        if self.source is not None and bool(left.any()):
            with frozen(self.source):
                noise = self.noise(attack, left)
                adv = attack.perturb(self.source, self.images[left], self.labels[left], noise).detach()
            lost = int((~self.agrees(adv, left)).sum())
            self.count("transfer-stronger", lost, f"found by {attack.name} made on the other network")

    def agrees(self, adv: Tensor, rows: Tensor) -> Tensor:
        """Say which of the images `adv`, made from `rows` (B,) bool, are still right."""
        with frozen(self.model), torch.no_grad():
            return ~errs(self.model(adv), self.labels[rows])

    def blind(self, attacks: list[Attack], left: Tensor) -> None:
        """Attacks without gradients on the images that white-box attacks left."""
        for attack in attacks:
            lost = int(left.sum()) - int(self.survivors(attack, left).sum())
            self.count("black-box-stronger", lost, f"found by {attack.name} at {attack.threat} only")

    def large_eps(self, attack: IterativeAttack) -> None:
        """The many-step attack where it cannot fail."""
        if type(attack).refuses(LARGE) is not None:
            return
        sure = _with(attack, LARGE, steps=max(attack.steps, LARGE_STEPS))
        images, labels = self.images[self.right], self.labels[self.right]
        with frozen(self.model):
            fooled = search(sure, self.model, images, labels, self.noise(attack, self.right)).fooled
        self.count("survives-large-eps", int((~fooled).sum()), f"under {attack.name}, {sure.steps} steps, at {LARGE}")


def _apart(one: Tensor, other: Tensor) -> float:
    """Measure how far unit logits (B, K) are apart, where they are most."""
    return float((F.normalize(one) - F.normalize(other)).norm(dim=1).max())


def _with(attack: IterativeAttack, threat: ThreatModel, **changes: int) -> IterativeAttack:
    """Return the attack at another radius, with those of the changes that its config knows."""
    known = {f.name for f in fields(attack.config)}
    config = replace(attack.config, **{name: value for name, value in changes.items() if name in known})
    return type(attack)(config, threat)


def _draw(threat: ThreatModel, images: Tensor, noise: Noise) -> Tensor:
    """Draw a random image on the ball's surface: a corner in Linf, any direction in L2."""
    return threat.project(images + threat.eps * threat.direction(noise.normal_like(images)), images)


_NO_ATTACK = "no attack of this run has what it takes (--attacks), or no gradient reaches the images"
MISSING = dict.fromkeys(CHECKS, _NO_ATTACK) | {
    "batch-dependent": "random-output is raised",
    "restarts-help": "no search of this run, of several steps, has a random start (--attacks)",
    "transfer-stronger": "name another network with --source",
    "transfer-only": "shown by the rows of a run under both protocols",
    "black-box-stronger": "no attack without gradients was asked for or found",
    "black-box-lowers-ensemble": "no ensemble with a gradient-free member was asked for",
}
