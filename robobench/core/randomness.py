"""How a model with random outputs is attacked and judged. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from robobench.errors import RequestError


@dataclass(frozen=True)
class Randomness:
    """How a model with random outputs is attacked and judged.

    Attributes:
        eot: passes over which gradients and outputs are averaged during an attack.
        wrong, passes: an image counts as misclassified if at least `wrong` of `passes` fresh passes are wrong.
    """

    eot: int = 1
    wrong: int = 1
    passes: int = 1

    def __post_init__(self) -> None:
        if self.eot < 1 or not 1 <= self.wrong <= self.passes:
            raise RequestError(
                f"eot must be 1 or more and a verdict K/N with 1 <= K <= N, got eot {self.eot}, verdict "
                f"{self.wrong}/{self.passes}"
            )

    def __str__(self) -> str:
        return f"eot {self.eot}, wrong in {self.wrong} of {self.passes} passes"

    @property
    def verdict(self) -> str:
        """K/N, as `--verdict` takes it."""
        return f"{self.wrong}/{self.passes}"

    @classmethod
    def parse(cls, eot: int | None, verdict: str | None) -> Randomness | None:
        """Return what `--eot N` and `--verdict K/N` ask for; None if neither is given.

        The default verdict is the majority of as many passes as `eot`.

        Raises:
            RequestError: a wrong value.
        """
        if eot is None and verdict is None:
            return None
        wrong, slash, passes = (verdict or f"{(eot or 1) // 2 + 1}/{eot or 1}").partition("/")
        if not (slash and wrong.strip().isdigit() and passes.strip().isdigit()):
            raise RequestError(f"verdict '{verdict}' is not K/N, such as 11/20: wrong in K of N passes")
        return cls(1 if eot is None else eot, int(wrong), int(passes))
