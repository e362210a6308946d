"""Options of an attack call: precision and compilation of the search, traces, and messages on out-of-memory."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class AttackOptions:
    """Options of one call of an attack. An attack that calls other attacks passes them on."""

    bf16_search: bool = False  # gradient steps may run in bfloat16, where attack and model allow it
    compiled: tuple[nn.Module, nn.Module] | None = None  # a model and its compiled copy, for gradient steps
    traces: dict[str, list[Tensor]] | None = None  # gets loss and success rate per step, by attack name
    on_component: Callable[[str], None] | None = None  # called with the name of the ensemble's next part
    on_oom_split: Callable[[str], None] = warnings.warn  # gets a message when a batch is split for lack of memory


DEFAULT_OPTIONS = AttackOptions()
