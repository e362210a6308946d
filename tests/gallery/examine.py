"""Examine the gallery as `robobench evaluate` does with default attacks, and write docs/gallery.md.

    python tests/gallery/examine.py

A masked model must be flagged, or its worst case must be within 5 points of the truth. The truth is found by APGD with
100 steps and 9 targets on a model with the same predictions and an honest gradient.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import gallery_models as models  # type: ignore[import-not-found]
import torch
from torch import Tensor, nn

from robobench.core.threat import ThreatModel
from robobench.data import load_dataset
from robobench.evaluation.accuracy import clean_outcomes, white_box_outcomes
from robobench.evaluation.model_checks import quick_model_checks
from robobench.models.wrapper import UserModel
from robobench.planning.presets import PRESETS
from robobench.plugins.discovery import load_attack

THREATS = (ThreatModel("Linf", 0.05), ThreatModel("Linf", 0.1))  # the radii of digits
EXAMPLES = 100
STRONGEST = {"attacks": ("apgd-ce", "apgd-t")}
OWN_TRUTH = ("staircase", "guessing")  # their predictions are not those of the undefended network


class Verdict(NamedTuple):
    """What an ordinary evaluation shows of a model; accuracies are fractions, None where flags decide."""

    flags: list[str]
    worst: float | None = None
    truth: float | None = None

    @property
    def passes(self) -> bool:
        """Whether the model is flagged, or its worst case is close to the truth."""
        return bool(self.flags) or (self.worst is not None and abs(self.worst - (self.truth or 0.0)) <= 0.05)


def build(name: str) -> nn.Module:
    """Return a model of the gallery as `evaluate` builds it."""
    return UserModel(getattr(models, name)(10)).eval()


def survivors(model: nn.Module, attacks: dict[str, dict[str, object]]) -> Tensor:
    """Return which of the test images survive all attacks at the larger radius: (EXAMPLES,) bool."""
    data, index = load_dataset("digits", resolution=32, need_train=False).test, torch.arange(EXAMPLES)
    out = clean_outcomes(model, data, index, "cpu")
    for name, values in attacks.items():
        cls = load_attack(name)
        out = out & white_box_outcomes(model, cls(cls.Config(**values), THREATS[-1]), data, index, out, "cpu")
    return out


@cache
def strongest(name: str) -> float:
    """Return the lowest accuracy that a strong search finds on a model with an honest gradient."""
    return float(survivors(build(name), {"autoattack": dict(STRONGEST)}).float().mean())


def examine(name: str) -> Verdict:
    """Check a model; attack a masked one with the default attacks if no check is raised."""
    data = load_dataset("digits", resolution=32, need_train=False).test
    found = quick_model_checks(build(name), data.images(torch.arange(128)), data.labels[:128], THREATS)
    flags = [f.check.name for f in found if f.raised]
    if flags or name in models.HONEST:
        return Verdict(flags)
    default = [load_attack(a) for a in PRESETS["quick"]["run"]["attacks"]]
    attacks = {cls.name: dict(cls.presets.get("quick", {})) for cls in default if cls.fixed_norm is None}
    worst = float(survivors(build(name), attacks).float().mean())
    return Verdict(flags, worst, strongest(name if name in OWN_TRUTH else "plain"))


def page() -> str:
    """Write the page of the docs."""
    lines = [
        "# Gallery of masked models",
        "",
        "Small models on digits that look robust and are not, broken ones, and honest ones. An ordinary `evaluate` "
        "flags every masked model, or finds its true accuracy to within 5 points; no honest one is flagged. A flagged "
        "model is not ranked ([checks](theory.md#gradient-masking)). The models are in "
        "`tests/gallery/gallery_models.py`; this page is written by `python tests/gallery/examine.py`.",
        "",
        f"Accuracies in %, {EXAMPLES} images, {THREATS[-1]}, default attacks of preset quick; truth: APGD, 100 steps, "
        "9 targets. They are empty where a flag decides.",
    ]
    for title, names in (("Masked, random and broken", models.OTHERS), ("Honest", models.HONEST)):
        lines += ["", f"## {title}", "", "| model | what it does | flags | worst | truth |", "|---|---|---|---|---|"]
        for name in names:
            verdict = examine(name)
            numbers = ["" if value is None else f"{100 * value:.0f}" for value in (verdict.worst, verdict.truth)]
            what = str(getattr(models, name).__doc__).strip()
            lines.append(f"| `{name}` | {what} | {', '.join(verdict.flags)} | {' | '.join(numbers)} |")
            print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    torch.set_num_threads(1)
    (Path(__file__).parents[2] / "docs" / "gallery.md").write_text(page())
