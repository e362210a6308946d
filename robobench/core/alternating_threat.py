"""Several threat models to train against, one of them at a time.

Paper:   Croce and Hein, "Adversarial Robustness against Multiple and Single l_p-Threat Models via Quick Fine-Tuning of
         Robust Classifiers" (E-AT), ICML 2022, arXiv:2105.12508. Tramer and Boneh, NeurIPS 2019, arXiv:1904.13000.
Code:    github.com/fra31/robust-finetuning.
Differs: every norm is equally likely. The code draws a norm in proportion to its training error so far, which a resumed
         run would have to restore. The attack is that of the defense; the code runs APGD.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from robobench.core.numbers import format_radius
from robobench.core.rng import seed_from
from robobench.core.threat import ThreatModel


class AlternatingThreat(ThreatModel):
    """Several threat models, of which each training batch draws one.

    Norm, radius and every method are those of the one drawn last. The training loop draws; a method sees an ordinary
    threat model.
    """

    __slots__ = ("_current", "_members")
    _members: tuple[ThreatModel, ...]
    _current: ThreatModel

    def __init__(self, members: Sequence[ThreatModel]) -> None:
        self._set(members, 0)

    def _set(self, members: Sequence[ThreatModel], current: int) -> None:
        for name, value in (("_members", tuple(members)), ("_current", members[current])):
            object.__setattr__(self, name, value)  # the base class is frozen

    @property
    def norm(self) -> str:
        """Norm of the current threat model."""
        return self._current.norm

    @property
    def eps(self) -> float:
        """Radius of the current threat model."""
        return self._current.eps

    @property
    def members(self) -> tuple[ThreatModel, ...]:
        """All threat models."""
        return self._members

    def recipe(self) -> dict[str, Any]:
        """Return all norms and radii in one text, such as Linf:8/255,L1:12. There is no single radius."""
        return {"norm": ",".join(f"{one.norm}:{format_radius(one.eps)}" for one in self.members), "eps": None}

    def draw(self, *parts: str | int) -> None:
        """Draw the current threat model. The same parts always give the same one."""
        self._set(self.members, seed_from("threat", *parts) % len(self.members))

    def __str__(self) -> str:
        return ", ".join(map(str, self.members))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AlternatingThreat) and self.members == other.members

    def __hash__(self) -> int:
        return hash(self.members)

    def __deepcopy__(self, memo: dict[int, Any]) -> AlternatingThreat:
        return self
