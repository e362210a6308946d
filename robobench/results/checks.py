"""Checks for signs that a robust accuracy is overestimated. Some of them need only the records of a run.

Sources: Carlini et al., "On Evaluating Adversarial Robustness", 2019, arXiv:1902.06705; Athalye et al., "Obfuscated
Gradients Give a False Sense of Security", ICML 2018, arXiv:1802.00420; Croce and Hein's AutoAttack, checks.py; Pintor
et al., "Indicators of Attack Failure", NeurIPS 2022, arXiv:2106.09947 (IoAF); the Adversarial Robustness Toolbox (ART).
A flag is no proof of gradient masking, and no flag is no proof of the opposite.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from robobench.results.records import EvaluationRecord, FindingRecord
from robobench.results.statistics import combine_worst_case, outcomes_of

MIN_COUNT_TEXT = "at least 2 images and 0.2 %"

BATCH_TOLERANCE = 2e-3  # distance of one image's logits, scaled to length 1, in two batches


def min_count(count: int) -> int:
    """Return the number of images from which a check is raised: 2, or 0.2 % of `count` if that is more."""
    return max(2, math.ceil(0.002 * count))


@dataclass(frozen=True)
class Check:
    """A check: when it is raised, where it comes from, and what to do then.

    Attributes:
        unreliable: the accuracy under attack may be far too high, so the model is not ranked.
    """

    name: str
    threshold: str
    source: str
    next_step: str
    unreliable: bool = True


CHECKS = {
    check.name: check
    for check in (
        Check(
            "train-mode",
            "a module in training mode, or a buffer that a forward pass changes",
            "RobustBench, eval.py",
            "call model.eval(), and make forward() independent of the batch",
            unreliable=False,
        ),
        Check(
            "input-range",
            "a value outside [0, 1] by more than 1e-6",
            "torchattacks and auto-attack, whose radii are on [0, 1]",
            "pass images in [0, 1], and normalize inside the model (--mean, --std)",
            unreliable=False,
        ),
        Check(
            "softmax-output",
            "every row in [0, 1] with sum 1, within 1e-5",
            "AutoAttack, checks.py",
            "return logits: a second softmax flattens the loss that attacks maximize",
            unreliable=False,
        ),
        Check(
            "random-output",
            "5 passes (3 in a run) over the same images: another number correct, or unit logits more than 1e-4 apart; "
            "for a model in memory also before and after the attacks",
            "AutoAttack, checks.py",
            "attack the expectation over the randomness (--eot 20), and judge by several passes (--verdict)",
        ),
        Check(
            "batch-dependent",
            f"unit logits differ by over {BATCH_TOLERANCE:g} in two reversed half batches (float32 rounding: 1e-7)",
            "robobench",
            "compute each image independently (BatchNorm with running statistics): attacks remove images from a batch",
        ),
        Check(
            "zero-gradients",
            f"zero gradient of the cross-entropy at correctly classified images: {MIN_COUNT_TEXT}",
            "AutoAttack, checks.py; ART, loss_gradient_check",
            "attack with a margin loss if it has a gradient; replace rounding by a differentiable function (--bpda)",
        ),
        Check(
            "non-finite-gradients",
            "NaN or infinity in the gradient of any image, or NaN during an attack",
            "ART, loss_gradient_check",
            "find the division, root or logarithm in the model that causes it, or rescale the logits",
        ),
        Check(
            "grad-mode-dependent",
            f"unit logits differ by over {BATCH_TOLERANCE:g} with and without autograd",
            "robobench",
            "return the same logits with and without gradients: attacks see another model than the accuracy",
        ),
        Check(
            "gradient-mismatch",
            "predicted and measured changes of the margin under random steps have a cosine below 0.9 (below 0.6 with "
            "equal weights per image) at 0.01, 0.1 and 1 eps; or a signed gradient step of eps / 10 or eps raises the "
            "margin more than 5 times as predicted, one of eps / 10 less than 0.2 times; or one of eps lowers it",
            "robobench",
            "the gradient is not that of the predictions: replace what breaks it (--bpda), use query attacks",
        ),
        Check(
            "tied-logits",
            f"correctly classified images whose two largest logits are equal: {MIN_COUNT_TEXT}",
            "robobench",
            "return logits without rounding or clamping",
        ),
        Check(
            "saturated-logits",
            "a quarter of the logits other than the largest are within 1 % of the ends of the range of all logits",
            "robobench",
            "return plain logits: a tanh, sigmoid, softmax or clamp flattens every loss that attacks maximize",
        ),
        Check(
            "loss-dependent",
            "6 PGD steps on the cross-entropy and on the margin differ by at least 6 of 8 images",
            "Croce and Hein, arXiv:2003.01690, section 4 (DLR loss)",
            "return plain logits (no tanh, sigmoid or softmax); rely on scale-invariant losses (apgd-dlr, apgd-t)",
        ),
        Check(
            "not-checked",
            "the quick checks of a run end with an error",
            "robobench",
            "make forward() work with and without gradients, in batches of any size",
        ),
        Check(
            "one-step-stronger",
            f"a single-step attack leaves fewer images correct than many steps do: {MIN_COUNT_TEXT}",
            "Athalye et al., section 3.1; Carlini et al.",
            "more steps with a smaller relative step, other losses; check whether the loss is rough at small scale",
        ),
        Check(
            "not-monotone",
            f"a many-step attack leaves more images correct at a larger radius: {MIN_COUNT_TEXT}",
            "Carlini et al.",
            "more steps and restarts: the larger ball contains the smaller one",
        ),
        Check(
            "survives-large-eps",
            f"images still correct after 100 steps at Linf 0.5, where any image can become gray: {MIN_COUNT_TEXT}",
            "Athalye et al., section 3.1; Carlini et al.; ART, security_curve",
            "the attack gets no useful gradient: check gradients, logit scale and randomness first",
        ),
        Check(
            "black-box-stronger",
            f"images that only gradient-free attacks find: {MIN_COUNT_TEXT} (in a run also 2 of 6 images, 125 queries)",
            "Carlini et al.; Athalye et al., section 3.1",
            "include the black-box attack in the worst case, and give it more queries",
        ),
        Check(
            "noise-stronger",
            f"images that random noise in the ball finds and white-box attacks miss: {MIN_COUNT_TEXT}",
            "Carlini et al.; Athalye et al., section 3.1",
            "the local gradient is not useful at distance eps: more restarts, averaged gradients",
        ),
        Check(
            "transfer-stronger",
            f"images that transfer examples find and white-box attacks miss: {MIN_COUNT_TEXT}",
            "Carlini et al.",
            "start the white-box attack from the transfer examples; use another loss",
        ),
        Check(
            "transfer-only",
            "white-box at most 0.1 of clean, transfer at least 0.5 of clean, 200 images or more",
            "robobench",
            "report white-box accuracy: the model only differs from the transfer source",
            unreliable=False,
        ),
        Check(
            "weak-source",
            "the transfer source is at most a tenth of the way from chance to perfect, or one of its checks is raised",
            "robobench",
            "give a --transfer-source that classifies these images; its examples say nothing about this model",
            unreliable=False,
        ),
        Check(
            "loss-still-rising",
            "mean loss of the images that survive the strongest attack rises by over 0.05 of its range in 10 steps",
            "IoAF, indicator of a non-converging attack",
            "more steps, until doubling them changes nothing",
            unreliable=False,
        ),
        Check(
            "restarts-help",
            f"images that a second, equally large set of restarts still finds: {MIN_COUNT_TEXT}",
            "Carlini et al.: twice the restarts should change nothing",
            "more restarts, until doubling them changes nothing",
            unreliable=False,
        ),
        Check(
            "black-box-lowers-ensemble",
            "the gradient-free attack of an ensemble lowers its accuracy by more than 0.2 points and 2 images or more",
            "AutoAttack, checks.py",
            "the gradient attacks of the ensemble fail here: adapt them, and give the black-box attack more queries",
            unreliable=False,
        ),
    )
}


@dataclass(frozen=True)
class Finding:
    """Result of one check; `raised` is None if it could not be made."""

    check: Check
    raised: bool | None
    measured: str

    def record(self) -> FindingRecord:
        """Return what a record holds of it."""
        return {"flag": self.check.name, "raised": self.raised, "measured": self.measured}

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**self.record(), **_as_dict(self.check)}


def _as_dict(check: Check) -> dict[str, str]:
    return {key: value for key, value in asdict(check).items() if key != "name"}


def make_finding(name: str, raised: bool | None, measured: str) -> Finding:
    """Return the result of the check called `name`."""
    return Finding(CHECKS[name], raised, measured)


def attack_kind(record: EvaluationRecord) -> str | None:
    """Return "one-step", "many-step" or "gradient-free"; None if the record does not state it."""
    if record.get("gradient_free") is None:
        return None
    return "gradient-free" if record["gradient_free"] else "one-step" if record["steps"] == 1 else "many-step"


def _is_own_source(record: EvaluationRecord) -> bool:
    """Return whether the model is itself the transfer source."""
    if "own_source" in record:  # not in older records
        return record["own_source"]
    return record.get("source_digest") is not None and record["source_digest"] == record["weights_digest"]


def raised_by_examination(records: Iterable[EvaluationRecord]) -> dict[str, str]:
    """Return the flags that the quick model checks raised, and what each of them measured."""
    return {f["flag"]: f["measured"] for r in records for f in r.get("findings") or () if f["raised"]}


def check_records(group: list[EvaluationRecord], norm: str, eps: float) -> list[Finding]:
    """Run the checks that need only records of one model, at one (norm, eps). Checks that lack a record are left out.

    Args:
        group: all records of one trained model on one set of images.
    """
    done = [r for r in group if r["status"] == "ok" and r["threat_norm"] == norm]
    white_box = [r for r in done if r["protocol"] == "white-box"]
    here: dict[str | None, list[EvaluationRecord]] = {}
    for r in white_box:
        if r["threat_eps"] == eps:
            here.setdefault(attack_kind(r), []).append(r)
    kinds = ("many-step", "one-step", "gradient-free")
    out = []
    for r in (r for r in white_box if r["threat_eps"] == eps and "black_box_found" in r):
        lost, count = r["black_box_found"], outcomes_of(r).size
        text = f"{lost} of {count} images of {r['attack']}"
        out.append(make_finding("black-box-lowers-ensemble", lost >= 2 and lost > 0.002 * count, text))
    many, one, gradient_free = (combine_worst_case(here.get(name, ())) for name in kinds)
    if many is None:
        return out
    count = many.size
    if one is not None:
        text = f"one step leaves {one.count} of {count} correct, many steps {many.count}"
        out.append(make_finding("one-step-stronger", many.count - one.count >= min_count(count), text))
    gradient = many if one is None else many & one
    transfer = [r for r in done if r["protocol"] == "transfer" and not _is_own_source(r)]
    transferred = combine_worst_case(r for r in transfer if r["threat_eps"] == eps)
    for name, other in (("black-box-stronger", gradient_free), ("transfer-stronger", transferred)):
        if other is not None:
            only = gradient.count_lost_in(other)
            out.append(make_finding(name, only >= min_count(count), f"{only} of {count} images"))
    smaller = [r for r in white_box if attack_kind(r) == "many-step" and r["threat_eps"] < eps]
    gains = [
        outcomes_of(r).count - outcomes_of(s).count
        for r in here["many-step"]
        for s in smaller
        if (r["attack"], r["attack_budget"]) == (s["attack"], s["attack_budget"])
    ]
    if gains:
        text = f"at most {max(gains)} more of {count} correct than at a smaller radius"
        out.append(make_finding("not-monotone", max(gains) >= min_count(count), text))
    return out
