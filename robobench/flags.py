"""Signs that a robust accuracy should not be believed: what they are, and those that a run's own records show.

Sources: Carlini et al., "On Evaluating Adversarial Robustness", 2019, arXiv:1902.06705; Athalye et al., "Obfuscated
Gradients Give a False Sense of Security", ICML 2018, arXiv:1802.00420; Croce and Hein's AutoAttack, checks.py; Pintor
et al., "Indicators of Attack Failure", NeurIPS 2022, arXiv:2106.09947 (IoAF); the Adversarial Robustness Toolbox (ART).
No sign is a proof, and no silence is one: it says that these checks found nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from robobench.statistics import Bits

FEW = "at least 2 images and 0.2 %"
BATCH = 2e-3  # between unit logits of one image in two batches


def few(count: int) -> int:
    """Return how many of `count` images make a sign: at least 2, or 0.2 %."""
    return max(2, math.ceil(0.002 * count))


@dataclass(frozen=True)
class Check:
    """A sign to look for: where it comes from, when it counts, and what to do about it."""

    name: str
    threshold: str
    source: str
    next: str


CHECKS = {
    check.name: check
    for check in (
        Check(
            "train-mode",
            "a module in training mode, or a buffer that a forward pass changes",
            "RobustBench, eval.py",
            "call model.eval() and let nothing in forward() depend on the batch",
        ),
        Check(
            "input-range",
            "a value outside [0, 1] by more than 1e-6",
            "torchattacks and auto-attack, whose radii are on [0, 1]",
            "give images in [0, 1] and normalize inside the model (--mean, --std)",
        ),
        Check(
            "softmax-output",
            "every row in [0, 1] with sum 1, within 1e-5",
            "AutoAttack, checks.py",
            "return logits: a second softmax flattens the loss that attacks climb",
        ),
        Check(
            "random-output",
            "5 passes (in a run 3) over the same images: another number right, or unit logits more than 1e-4 apart",
            "AutoAttack, checks.py",
            "attack the expectation over the randomness (EoT, 20 samples a gradient); judge several evaluations",
        ),
        Check(
            "batch-dependent",
            f"unit logits over {BATCH:g} from those in two halves, reversed (float32 rounds cnn, resnet20 by 1e-7)",
            "robobench",
            "let no image see another (BatchNorm with running statistics): attacks drop images from the batch",
        ),
        Check(
            "zero-gradients",
            f"cross-entropy without any gradient at clean images that are right: {FEW}",
            "AutoAttack, checks.py; ART, loss_gradient_check",
            "attack with a margin loss where that has a gradient; replace rounding by a smooth stand-in (BPDA)",
        ),
        Check(
            "non-finite-gradients",
            "NaN or infinity in the gradient of any image, or NaN on an attack's way",
            "ART, loss_gradient_check",
            "find the division, root or logarithm in the model, or rescale its logits",
        ),
        Check(
            "one-step-stronger",
            f"a single-step attack leaves fewer images right than many steps do: {FEW}",
            "Athalye et al., section 3.1; Carlini et al.",
            "more steps with a smaller relative step, other losses; look for a loss that is rough at small scale",
        ),
        Check(
            "not-monotone",
            f"a many-step attack leaves more images right at a larger radius: {FEW}",
            "Carlini et al.",
            "more steps and restarts: the larger ball contains the smaller one",
        ),
        Check(
            "survives-large-eps",
            f"images still right under 100 steps at Linf 0.5, where any image can become gray: {FEW}",
            "Athalye et al., section 3.1; Carlini et al.; ART, security_curve",
            "the attack does not see the model: look at its gradients, scale and randomness before any other figure",
        ),
        Check(
            "black-box-stronger",
            f"images that only attacks without gradients find: {FEW}",
            "Carlini et al.; Athalye et al., section 3.1",
            "report the worst case with the black-box attack in it, and give it more queries",
        ),
        Check(
            "noise-stronger",
            f"images that random draws in the ball find and white-box attacks miss: {FEW}",
            "Carlini et al.; Athalye et al., section 3.1",
            "look for a loss whose gradient does not point at its neighbors: more restarts, averaged gradients",
        ),
        Check(
            "transfer-stronger",
            f"images that examples from another network fool and white-box attacks miss: {FEW}",
            "Carlini et al.",
            "start the white-box attack from the transferred examples; attack with another loss",
        ),
        Check(
            "transfer-only",
            "white-box at most 0.1 of clean, transfer at least 0.5 of clean, 200 images or more",
            "robobench",
            "report white-box accuracy: this network only differs from the one the examples were made on",
        ),
        Check(
            "loss-still-rising",
            "mean loss of what survives the strongest search, monotone and in [0, 1], gains over 0.05 in 10 steps",
            "IoAF, indicator of a non-converging attack",
            "more steps, until twice as many change nothing",
        ),
        Check(
            "restarts-help",
            f"images that a second set of as many restarts still finds: {FEW}",
            "Carlini et al.: twice the restarts should change nothing",
            "more restarts, until twice as many change nothing",
        ),
        Check(
            "black-box-lowers-ensemble",
            "its gradient-free member lowers an ensemble by more than 0.2 points, at least 2 images",
            "AutoAttack, checks.py",
            "the gradient attacks of the ensemble are misled here: adapt them, and give the black-box one more queries",
        ),
    )
}


@dataclass(frozen=True)
class Finding:
    """What one check saw; `raised` is None where it could not look."""

    check: Check
    raised: bool | None
    measured: str

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"flag": self.check.name, "raised": self.raised, "measured": self.measured, **_told(self.check)}


def _told(check: Check) -> dict[str, str]:
    return {key: value for key, value in asdict(check).items() if key != "name"}


def finding(name: str, raised: bool | None, measured: str) -> Finding:
    """File what was measured under a check of CHECKS."""
    return Finding(CHECKS[name], raised, measured)


# --- from the records of a run ------------------------------------------------------------------


def kind(record: dict[str, Any]) -> str | None:
    """Tell "one-step", "many-step" and "gradient-free" apart; None for a record that does not say."""
    if record.get("gradient_free") is None:
        return None
    return "gradient-free" if record["gradient_free"] else "one-step" if record["steps"] == 1 else "many-step"


def _own(record: dict[str, Any]) -> bool:
    """Whether transfer examples were made on the very network they were shown to."""
    return record.get("source_digest") is not None and record["source_digest"] == record["weights_digest"]


def worst(records: Iterable[dict[str, Any]]) -> Bits | None:
    """Combine attacks on the same images: an image survives if it survives all; None where there are none."""
    out: Bits | None = None
    for record in records:
        bits = Bits.read(record["robust_bits"])
        out = bits if out is None else out & bits
    return out


def examined(records: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Return what the networks of these records raised before any attack, and what was measured."""
    return {f["flag"]: f["measured"] for r in records for f in r.get("findings") or () if f["raised"]}


def from_records(group: list[dict[str, Any]], norm: str, eps: float) -> list[Finding]:
    """Read the signs of one network at one (norm, eps) off its records; a check without its records is left out.

    Args:
        group: every record of one trained network on one set of images, with `steps` and `gradient_free` of the attack.
    """
    done = [r for r in group if r["status"] == "ok" and r["threat_norm"] == norm]
    white = [r for r in done if r["protocol"] == "white-box"]
    here: dict[str | None, list[dict[str, Any]]] = {}
    for r in white:
        if r["threat_eps"] == eps:
            here.setdefault(kind(r), []).append(r)
    many, one, blind = (worst(here.get(name, ())) for name in ("many-step", "one-step", "gradient-free"))
    if many is None:
        return []
    out, count = [], len(many.values)
    if one is not None:
        text = f"one step leaves {one.count} of {count} right, many steps {many.count}"
        out.append(finding("one-step-stronger", many.count - one.count >= few(count), text))
    gradient = many if one is None else many & one
    others = [r for r in done if r["protocol"] == "transfer" and not _own(r)]  # the source's examples are its own
    transferred = worst(r for r in others if r["threat_eps"] == eps)
    for name, other in (("black-box-stronger", blind), ("transfer-stronger", transferred)):
        if other is not None:
            only = gradient.without(other)
            out.append(finding(name, only >= few(count), f"{only} of {count} images"))
    smaller = [r for r in white if kind(r) == "many-step" and r["threat_eps"] < eps]
    gains = [
        Bits.read(r["robust_bits"]).count - Bits.read(s["robust_bits"]).count
        for r in here["many-step"]
        for s in smaller
        if (r["attack"], r["budget"]) == (s["attack"], s["budget"])
    ]
    if gains:
        text = f"at most {max(gains)} more of {count} right than at a smaller radius"
        out.append(finding("not-monotone", max(gains) >= few(count), text))
    return out
