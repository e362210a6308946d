"""Names as users type them: `AT`, `PGD` and `CIFAR10` mean `at`, `pgd` and `cifar10`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from robobench.core.numbers import canonical_norm
from robobench.core.registry import match_name
from robobench.data.info import DATASETS
from robobench.models.spec import MODELS
from robobench.planning.presets import PRESETS
from robobench.planning.request import ExperimentConfig
from robobench.plugins.discovery import discover


def match_request(request: ExperimentConfig) -> ExperimentConfig:
    """Return the request with every known name in its own spelling."""
    defenses, attacks = list(discover("defense")), list(discover("attack"))

    def match_head(text: str, known: Iterable[str], separator: str = ":") -> str:
        head, found, rest = text.partition(separator)
        return match_name(head, known) + found + rest

    plugins = [*defenses, *attacks, "run"]
    return replace(
        request,
        defenses=tuple(match_name(name, defenses) for name in request.defenses),
        attacks=None if request.attacks is None else tuple(match_head(name, attacks) for name in request.attacks),
        dataset=match_head(request.dataset, [name.partition(":")[0] for name in DATASETS]),
        model=match_name(request.model, MODELS),
        preset=None if request.preset is None else match_name(request.preset, PRESETS),
        norm=canonical_norm(request.norm),
        sets=tuple(match_head(text, plugins, ".") for text in request.sets),
    )
