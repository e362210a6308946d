"""Traces of attacks: loss and success rate at every evaluation of the model, thinned for long attacks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Evaluations that are kept: all of a short attack, some of a long one.
TRACE_STEPS = (*range(20), *range(20, 100, 5), *range(100, 1000, 50), *range(1000, 10_001, 500))

# By attack name: "images" (their number), and at each of TRACE_STEPS "loss" (mean cross-entropy in nats; an image that
# left the batch keeps its last value) and "success_rate" (fraction of images misclassified so far).
Traces = dict[str, dict[str, Any]]


class TraceRecorder:
    """Mean loss and success rate of one batch at every evaluation."""

    def __init__(self, count: int, device: torch.device) -> None:
        self.loss = torch.zeros(count, device=device)
        self.success = torch.zeros(count, dtype=torch.bool, device=device)
        self.rows: list[Tensor] = []

    def record_step(self, logits: Tensor, labels: Tensor, rows: Tensor, success: Tensor) -> None:
        """Record an evaluation: logits (b, K), labels (b,) and success (b,) bool of the images at `rows` (b,)."""
        self.loss[rows] = F.cross_entropy(logits.detach().float(), labels, reduction="none")
        self.success[rows] |= success
        count = torch.tensor(float(len(self.loss)), device=self.loss.device)
        self.rows.append(torch.stack((count, self.loss.mean(), self.success.float().mean())))

    def result(self) -> Tensor:
        """Return the trace (E, 3) on the CPU: number of images, mean loss and success rate at each evaluation."""
        return torch.stack(self.rows).cpu()


def collect_traces(recorded: Mapping[str, Sequence[Tensor]]) -> Traces:
    """Average recorded traces (E, 3) of the parts of a batch, by attack name, and keep TRACE_STEPS of them.

    The last kept entry is that of the last evaluation.
    """
    parts: list[Traces] = []
    for attack, traces in recorded.items():
        for trace in traces:
            kept = [step for step in TRACE_STEPS if step < len(trace)]
            rows = trace[[*kept[:-1], len(trace) - 1]].tolist()
            loss, success = [row[1] for row in rows], [row[2] for row in rows]
            parts.append({attack: {"images": int(trace[0, 0]), "loss": loss, "success_rate": success}})
    return average_traces(parts)


def average_traces(parts: Iterable[Traces]) -> Traces:
    """Average traces weighted by images. A trace that stopped early is padded with its last value."""
    found: dict[str, list[dict[str, Any]]] = {}
    for part in parts:
        for attack, trace in part.items():
            found.setdefault(attack, []).append(trace)
    out: Traces = {}
    for attack, traces in found.items():
        images, length = sum(t["images"] for t in traces), max(len(t["loss"]) for t in traces)
        out[attack] = {"images": images}
        for name in ("loss", "success_rate"):
            padded = [[*t[name], *[t[name][-1]] * (length - len(t[name]))] for t in traces]
            out[attack][name] = [
                sum(t["images"] * values[i] for t, values in zip(traces, padded, strict=True)) / images
                for i in range(length)
            ]
    return out


def round_traces(traces: Traces) -> Traces:
    """Round values to 5 digits for a record."""
    return {
        attack: {"images": t["images"], **{name: [round(v, 5) for v in t[name]] for name in ("loss", "success_rate")}}
        for attack, t in traces.items()
    }
