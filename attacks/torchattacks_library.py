"""Every other attack of torchattacks, with its own defaults, names of parameters and absolute step sizes.

Paper:   Kim, "Torchattacks: A PyTorch Repository for Adversarial Attacks", 2020, arXiv:2010.01950.
Code:    package torchattacks; nothing is reimplemented. Parameters are read from the signatures.
Differs: norm, radius, seed and number of classes are those of the run. An image outside the ball or [0, 1] is no
         success: the clean image takes its place. Attacks without a radius (CW, DeepFool, EAD) search for a close
         image, which counts if it lies in the ball.
"""

from __future__ import annotations

import contextlib
import inspect
import re
import sys
from dataclasses import field, make_dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robobench.api import ATTACKS, DEFAULT_OPTIONS, Attack, AttackOptions, KeyedRng, ThreatModel, per_image

RADII = ("eps", "max_epsilon")
GIVEN = (*RADII, "model", "norm", "seed", "n_classes", "verbose")  # parameters that the run decides
STEPS = ("steps", "num_iter_set", "max_iterations", "nb_iter")


class ContiguousGradient(nn.Module):
    """A model whose input gradient is contiguous: torchattacks calls view(), which fails on channels-last gradients."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.train(model.training)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, K)."""
        if images.requires_grad:
            images.register_hook(torch.Tensor.contiguous)  # type: ignore[no-untyped-call]
        logits: Tensor = self.model(images)
        return logits


class LibraryAttack(Attack):
    """Base class of the adapted attacks."""

    library = "torchattacks"
    attack: ClassVar[Any]  # the class of torchattacks
    parameters: ClassVar[frozenset[str]]
    refusal: ClassVar[str | None]  # why it cannot be used at all

    @classmethod
    def why_unsupported(cls, threat: ThreatModel) -> str | None:
        """Return what the attack needs and does not get, or that it has no form in this norm."""
        return cls.refusal or super().why_unsupported(threat)

    @property
    def steps(self) -> int | None:
        """Number of steps, whatever torchattacks calls it."""
        return next((getattr(self.config, name) for name in STEPS if hasattr(self.config, name)), None)

    @property
    def relative_step(self) -> float | None:
        """The absolute step size alpha as a fraction of eps; None if there is none."""
        alpha = getattr(self.config, "alpha", None)
        return None if alpha is None or self.threat.eps == 0 else alpha / self.threat.eps

    def attack_full_budget(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        rng: KeyedRng,
        options: AttackOptions = DEFAULT_OPTIONS,
    ) -> Tensor:
        """Return torchattacks' images that lie in the ball, and the clean image in place of the others."""
        if self.threat.eps == 0 or len(images) == 0:
            return images.clone()
        with torch.no_grad():
            num_classes = model(images[:1]).shape[1]
        seed = rng.seed()
        given = dict.fromkeys(RADII, self.threat.eps) | {"norm": self.threat.norm, "seed": seed, "verbose": False}
        given = {name: value for name, value in (given | {"n_classes": num_classes}).items() if name in self.parameters}
        # torchattacks prints a message if a model has no parameters; stdout is for tables.
        with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []), to_stderr(), torch.enable_grad():
            torch.manual_seed(seed)
            attack = self.attack(ContiguousGradient(model), **vars(self.config), **given)
            attack.set_device(images.device)
            adv = attack(images.contiguous(), labels).detach().to(images)
        return torch.where(per_image(self.threat.contains(adv, images), images), adv, images)


def to_stderr() -> contextlib.redirect_stdout[Any]:
    """Return a context in which printed lines go to stderr."""
    return contextlib.redirect_stdout(sys.stderr)


@ATTACKS.register_library("torchattacks")
def adapt(attack: Any) -> type[Attack]:
    """Return the attack that runs a class of torchattacks. Its Config has the parameters of the signature.

    Norms are read from the line "Distance Measure" of the docstring.
    """
    parameters = inspect.signature(attack).parameters
    own = {name: p for name, p in parameters.items() if name not in GIVEN}
    needed = [name for name, p in own.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    measure = re.search(r"Distance Measure : (.*)", attack.__doc__ or "")
    stated = re.findall(r"L(?:inf|\d)", measure[1]) if measure else []
    norms = tuple(norm for norm in ("Linf", "L2", "L1") if norm in stated)
    refusal = None
    if needed:
        refusal = f"torchattacks.{attack.__name__} needs {' and '.join(needed)}, which no flag gives"
    elif not norms:
        refusal = (
            f"torchattacks.{attack.__name__} is an attack in {stated[0] if stated else 'no norm'}, without a ball here"
        )
    settings = {} if refusal else {name: p.default for name, p in own.items()}
    kinds = {name: int | float if type(value) is int else type(value) for name, value in settings.items()}
    columns = [(name, kinds[name], field(default=value)) for name, value in settings.items()]
    source = inspect.getsource(sys.modules[attack.__module__])
    return type(
        f"Torchattacks{attack.__name__}",
        (LibraryAttack,),
        {
            "__doc__": f"torchattacks.{attack.__name__}.",
            "__module__": __name__,
            "Config": make_dataclass(f"{attack.__name__}Config", columns, frozen=True, kw_only=True),
            "attack": attack,
            "parameters": frozenset(parameters),
            "refusal": refusal,
            "norms": norms,
            "fixed_norm": norms[0] if len(norms) == 1 and norms[0] != "Linf" else None,
            "gradient_free": "autograd" not in source and ".backward(" not in source,
            "finds_closest": not parameters.keys() & {*RADII},
        },
    )
