"""Writes a plug-in package that works as it stands: a method, its entry point, its test."""

from __future__ import annotations

import keyword
import re
from pathlib import Path
from string import Template

from robobench import plugins
from robobench.errors import RequestError
from robobench.store import check_writable

DEFENSE = '''"""$title: say in one line what it does.

Paper:   authors, "Title", venue, link.
Differs: where this file departs from the paper, and why.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from robobench.api import DEFENSES, Batch, Defense, Loss, Passes, Recipe, Setup, Stage
from robobench.inner import ascend, eval_mode
from robobench.threat import ThreatModel


@dataclass(frozen=True, kw_only=True)
class ${cls}Config(Recipe):
    """Fields of your own; `--set $name.clean_weight=0.5` changes one."""

    clean_weight: float = 0.5  # share of the clean loss; the rest is the loss on attacked images
    inner_steps: int = 3
    relative_step: float = 0.5  # of eps

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("clean_weight", 0 <= self.clean_weight <= 1, "in [0, 1]")
        self.require("inner_steps", self.inner_steps >= 1, ">= 1")


@DEFENSES.register("$name")
class $cls(Defense):
    """Cross-entropy on clean and on attacked images."""

    Config = ${cls}Config
    version = 1  # raise it with every change that moves the numbers

    def stages(self, setup: Setup) -> list[Stage]:
        """One stage; the core steps, times, stores and resumes it."""
        steps = self.config.inner_steps
        passes = Passes(forward=steps + 2, input_grad=steps, weight_grad=2)  # per training image and epoch
        return [setup.train("train", Objective(setup.model, setup.threat, self.config), passes=passes)]


class Objective(nn.Module):
    """One batch to its loss."""

    def __init__(self, model: nn.Module, threat: ThreatModel, config: ${cls}Config) -> None:
        super().__init__()
        self.model, self.threat, self.config = model, threat, config

    def forward(self, batch: Batch) -> Loss:
        """Mix both losses; images (B, C, H, W) in [0, 1], labels (B,)."""
        weight = self.config.clean_weight
        clean = F.cross_entropy(self.model(batch.images), batch.labels)
        robust = F.cross_entropy(self.model(self.attacked(batch)), batch.labels)
        return Loss(weight * clean + (1 - weight) * robust, {"clean_loss": clean, "robust_loss": robust})

    def attacked(self, batch: Batch) -> Tensor:
        """Walk up the cross-entropy from a random start in the ball; all draws come from the batch's noise."""
        threat = self.config.threat_at(self.threat, batch.epoch)

        def objective(adv: Tensor) -> Tensor:
            return F.cross_entropy(self.model(adv), batch.labels, reduction="none")

        start = threat.random_start(batch.images, batch.noise.child("start"))
        with eval_mode(self.model):  # BatchNorm's statistics stay put during the search
            step_size = self.config.relative_step * threat.eps
            return ascend(objective, start, batch.images, threat, self.config.inner_steps, step_size)
'''

ATTACK = '''"""$title: say in one line what it does.

Paper:   authors, "Title", venue, link.
Differs: where this file departs from the paper, and why.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robobench.api import ATTACKS, IterativeAttack
from robobench.randomness import Noise
from robobench.search import State


@dataclass(frozen=True, kw_only=True)
class ${cls}Config:
    """Fields of your own; `--set $name.steps=50` changes one."""

    steps: int = 20
    relative_step: float = 0.25  # of eps

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.relative_step > 0:
            raise ValueError(f"steps must be >= 1 and relative_step > 0, got {self.steps}, {self.relative_step}")


@ATTACKS.register("$name")
class $cls(IterativeAttack):
    """Ascent on the margin: the best wrong logit minus the right one."""

    Config = ${cls}Config
    version = 1  # raise it with every change that moves the numbers

    def start(self, images: Tensor, labels: Tensor, noise: Noise) -> State:
        """Start anywhere in the ball; all draws come from `noise`."""
        return State(images, labels, self.threat.random_start(images, noise), noise)

    def step(self, model: nn.Module, state: State) -> tuple[State, Tensor]:
        """Take one step uphill; return the new state and the logits (B, K) at the old one."""
        with torch.enable_grad():
            adv = state.adv.detach().requires_grad_(True)
            logits = model(adv)
            right = logits.gather(1, state.labels[:, None])[:, 0]
            wrong = logits.scatter(1, state.labels[:, None], -torch.inf).amax(1)
            grad = torch.autograd.grad((wrong - right).sum(), adv)[0]
        length = self.config.relative_step * self.threat.eps
        return state.moved(self.threat.step(state.adv, grad, length, state.images)), logits.detach()
'''

PROJECT = """[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "$package"
version = "0.1.0"
description = "$title for robobench"
requires-python = ">=3.11"
dependencies = ["robobench"]

[project.entry-points."robobench.${kind}s"]
$name = "$module"

[tool.setuptools]
py-modules = ["$module"]
"""

TEST = '''"""The contract every plug-in keeps; add what your paper says must hold."""

from pathlib import Path

from robobench.testing import check_plugin

FILE = Path(__file__).parents[1] / "$module.py"


def test_the_contract_holds():
    findings = list(check_plugin(str(FILE)))
    assert findings
    assert [f"{check}: {problem}" for _, _, check, problem in findings if problem] == []
'''

README = """# $title

A $kind for robobench.

```
robobench check $module.py
$run
python -m pytest
```

After `pip install -e .` robobench finds `$name` by itself, without `--plugin`.
"""

RUN = {
    "defense": "robobench compare --plugin $module.py --defenses standard,$name",
    "attack": "robobench run --defense standard --plugin $module.py --attacks $name",
}


def write(kind: str, name: str, folder: Path | None = None) -> list[Path]:
    """Write the package of a new plug-in into `folder` (by default a new folder of its name); return its files.

    Raises:
        RequestError: an unknown kind, a name that cannot be one or is taken, a folder that is there.
    """
    if kind not in plugins.KINDS:
        raise RequestError(f"unknown plug-in '{kind}'; known: {', '.join(plugins.KINDS)}")
    module = name.replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or keyword.iskeyword(module):
        raise RequestError(f"'{name}' cannot name a {kind}; use small letters, digits and dashes, as in my-{kind}")
    taken = plugins.found(kind).get(name)
    if taken:
        raise RequestError(f"{kind} '{name}' is already registered by {taken.module}; choose another name")
    folder = folder or Path(name)
    if folder.exists():
        raise RequestError(f"'{folder}' is there already; choose another name or --out")
    check_writable(folder)
    words = {
        "kind": kind,
        "name": name,
        "module": module,
        "package": f"robobench-{name}",
        "title": name.replace("-", " ").capitalize(),
        "cls": "".join(part.capitalize() for part in name.split("-")),
    }
    words["run"] = Template(RUN[kind]).substitute(words)
    files = {
        f"{module}.py": DEFENSE if kind == "defense" else ATTACK,
        f"tests/test_{module}.py": TEST,
        "pyproject.toml": PROJECT,
        "README.md": README,
    }
    written = []
    for place, template in files.items():
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(Template(template).substitute(words))
        written.append(path)
    return written
