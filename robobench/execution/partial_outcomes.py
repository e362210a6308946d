"""Outcomes of an unfinished evaluation, from which it resumes."""

from __future__ import annotations

import json

from robobench.attack_engine.trace import Traces
from robobench.store.partial import PartialResults


def load_partial(saves: PartialResults) -> tuple[list[str], Traces, float]:
    """Return the finished batches of an evaluation as bit strings, their traces and their seconds."""
    folder = saves.newest()
    if folder is None:
        return [], {}, 0.0
    saved = json.loads((folder / "outcomes.json").read_text())
    return saved["bits"], saved["traces"], saved["seconds"]


def save_partial(saves: PartialResults, bits: list[str], traces: Traces, seconds: float) -> None:
    """Save the finished batches of an evaluation."""
    with saves.saving(len(bits)) as work:
        (work / "outcomes.json").write_text(json.dumps({"bits": bits, "traces": traces, "seconds": seconds}))
