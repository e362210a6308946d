"""Tables of a grid of settings: the best of each defense on held-out training images, and paired differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd
from rich.console import Console

from robobench.planning.study import Axis, Point
from robobench.report.comparison import print_comparison, print_differences
from robobench.report.formatting import format_percent, format_threat
from robobench.report.matrix import render_matrix
from robobench.results.records import EvaluationRecord
from robobench.results.statistics import grid_differences

CHOICE_NOTE = (
    "Mean over seeds of PGD-10 accuracy, at the training radius, on {images} training images that no model was trained "
    "on.\nThe best setting is chosen on these, never on test images."
)
NO_CHOICE = (
    "no best setting is chosen: that takes training images that are not trained on; "
    "--set run.held_out=1000 holds some out"
)
PART_KEYS = ("dataset", "data_digest", "model", "examples", "precision")  # models of one part are compared
PART_AXES = ("dataset", "model", "examples", "precision")


@dataclass(frozen=True)
class Setting:
    """One setting of a defense in a grid, and its accuracy on held-out training images."""

    group: tuple[str, ...]  # data set, model, defense, selected weights, training threat
    label: str
    accuracy: float  # mean over the seeds
    seeds: int
    images: int
    is_best: bool = False


def label_settings(points: Sequence[Point], results: Sequence[list[EvaluationRecord]]) -> dict[str, tuple[Axis, ...]]:
    """Return by config digest the coordinates that a setting of a defense has in the grid.

    An axis that the setting does not depend on is left out: `at` is the same at every trades.beta.
    """
    found: dict[str, list[dict[str, str]]] = {}
    for point, records in zip(points, results, strict=True):
        for digest in {r["config_digest"] for r in records}:
            found.setdefault(digest, []).append(dict(point.axes))
    out = {}
    for digest, places in found.items():
        names = dict.fromkeys(name for place in places for name in place)
        fixed = [name for name in names if len({place.get(name) for place in places}) == 1]
        out[digest] = tuple((name, places[0][name]) for name in fixed)
    return out


def choose_settings(records: Sequence[EvaluationRecord], labels: dict[str, tuple[Axis, ...]]) -> list[Setting]:
    """Return the settings of every defense that has several, with the best one marked.

    Only settings that were trained against the same threat and measured on as many held-out images are compared.
    """
    found: dict[tuple[str, ...], dict[str, dict[str, tuple[float, int]]]] = {}
    for r in records:
        measured = _held_out_accuracy(r)
        if measured is None or r["is_control"]:
            continue
        threat = format_threat(r["train_norm"], r["train_eps"]) if r["train_norm"] else "-"
        group: tuple[str, ...] = (r["dataset"], r["model"], r["defense"], r["selection"], threat, str(measured[1]))
        found.setdefault(group, {}).setdefault(r["config_digest"], {})[r["training"]] = measured
    out = []
    for group, settings in found.items():
        if len(settings) < 2:
            continue
        means = {digest: math.fsum(a for a, _ in of.values()) / len(of) for digest, of in settings.items()}
        best = max(means, key=lambda digest: means[digest])
        for digest, of in sorted(settings.items(), key=lambda item: -means[item[0]]):
            label = ", ".join(f"{name}={value}" for name, value in labels.get(digest, ()) if name != "model")
            out.append(Setting(group[:-1], label, means[digest], len(of), int(group[-1]), digest == best))
    return out


def _held_out_accuracy(record: EvaluationRecord) -> tuple[float, int] | None:
    """Return PGD accuracy on held-out training images and their number; None if none were held out."""
    averaged = record["selection"] in ("average", "best-average")
    timing = record.get("timing")
    found = None if timing is None else timing.get("selection_average") if averaged else timing.get("selection")
    if not found:
        return None
    kind = "best_pgd" if record["selection"] in ("best", "best-average") else "last_pgd"
    return found[kind], int(found["images"])


def print_study(
    points: Sequence[Point], results: Sequence[list[EvaluationRecord]], console: Console, baseline: str | None
) -> None:
    """Print the best settings of a grid, differences to the baseline with Holm's correction over it, and spreads."""
    records = list({r["key"]: r for part in results for r in part}.values())
    labels = label_settings(points, results)
    _print_choice(records, labels, console)
    parts: dict[tuple[object, ...], list[EvaluationRecord]] = {}
    for r in records:
        axes = [(name, value) for name, value in labels[r["config_digest"]] if name not in PART_AXES]
        name = ", ".join([r["defense"], *(f"{name}={value}" for name, value in axes)])
        part = parts.setdefault(_part(r), [])
        part.append({**r, "defense": name})
    several = len(parts) > 1
    if baseline is not None:
        differences = grid_differences(parts.values(), _find_baseline(parts, baseline))
        for (key, _), found in zip(parts.items(), differences, strict=True):
            print_differences(found, console, f"; {key[0]}, {key[2]}" * several, over="the grid")
    for key, part in parts.items():
        print_comparison(part, console, None, f"; {key[0]}, {key[2]}" * several)


def _part(record: EvaluationRecord) -> tuple[object, ...]:
    """Return the values of PART_KEYS."""
    values = dict(record)
    return tuple(values[key] for key in PART_KEYS)


def _find_baseline(
    parts: dict[tuple[object, ...], list[EvaluationRecord]], baseline: str
) -> Callable[[str], str | None]:
    """Return the function from the name of a model to that of its baseline: the one with no coordinate of its own."""
    names = {r["defense"] for part in parts.values() for r in part}
    candidates = {name: set(name.split(", ")[1:]) for name in names if name.split(", ")[0] == baseline}

    def find(name: str) -> str | None:
        axes = set(name.split(", ")[1:])
        fitting = [other for other, own in candidates.items() if own <= axes and other != name]
        return max(fitting, key=lambda other: len(candidates[other]), default=None) if name not in candidates else None

    return find


def _print_choice(records: list[EvaluationRecord], labels: dict[str, tuple[Axis, ...]], console: Console) -> None:
    settings = choose_settings(records, labels)
    if not settings:
        found: dict[tuple[object, ...], set[str]] = {}
        for r in records:
            if not r["is_control"]:
                found.setdefault((r["defense"], *_part(r)), set()).add(r["config_digest"])
        if any(len(digests) > 1 for digests in found.values()):
            console.print(NO_CHOICE, markup=False, highlight=False)
        return
    table = pd.DataFrame(
        {
            "defense": [
                ", ".join(part for part in (s.group[2], s.group[1], s.group[4]) if part != "-") for s in settings
            ],
            "setting": [s.label + (" (best)" if s.is_best else "") for s in settings],
            "held-out PGD-10 (%)": [format_percent(s.accuracy) for s in settings],
            "seeds": [str(s.seeds) for s in settings],
        }
    ).set_index("defense")
    images = ", ".join(sorted({str(s.images) for s in settings}))
    console.print(render_matrix(table, "best setting of each defense", CHOICE_NOTE.format(images=images)))
    console.print()
