"""robobench: train adversarial defenses, time them, attack them all in the same way, and write accuracy matrices.

import robobench
rows = robobench.run("macd", model="wrn50")          # a pandas DataFrame, one row per cell
model = robobench.load("runs", "macd")               # the trained model, ready to use
adv = robobench.attack("pgd", model, images, labels, eps="8/255")
result = robobench.evaluate(model=model, images=images, labels=labels, eps="8/255", attacks="autoattack")
clean, robust = robobench.benchmark(model, dataset="cifar10", threat_model="Linf", eps=8 / 255)
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robobench.execution.load import load
    from robobench.interface import (
        attack,
        benchmark,
        compare,
        corruptions,
        diagnose,
        distances,
        evaluate,
        leaderboard,
        run,
        score,
    )
    from robobench.report.notebook import show

try:
    __version__ = version("robobench")
except PackageNotFoundError:
    __version__ = "0+unknown"

__all__ = [
    "__version__",
    "attack",
    "benchmark",
    "compare",
    "corruptions",
    "diagnose",
    "distances",
    "evaluate",
    "leaderboard",
    "load",
    "run",
    "score",
    "show",
]


def __getattr__(name: str) -> Any:
    """Import the Python interface, and torch with it, at its first use."""
    if name == "show":
        from robobench.report.notebook import show

        return show
    if name in __all__:
        from robobench import interface

        return getattr(interface, name)
    raise AttributeError(f"module 'robobench' has no attribute '{name}'")
