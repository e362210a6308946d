"""Figure of robust accuracy against the cost of training, teachers included, with the Pareto front."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from robobench.report.figures import COLORS, INK, MAX_MODELS, figure_style, new_figure
from robobench.report.formatting import format_count, format_threat, training_name

COSTS: dict[str, tuple[str, Callable[[float], str]]] = {  # column -> label, format of a tick
    "total_train_seconds": ("time (s)", lambda value: f"{value:g}"),
    "total_train_cpu_seconds": ("CPU time (s)", lambda value: f"{value:g}"),
    "total_train_forwards": ("forward-pass equivalents", format_count),
    "total_train_flops": ("FLOPs", format_count),
}
MARKERS = {"last": "o", "best": "s", "average": "^", "best-average": "D"}  # kind of weights
NAMES = {"last": "last epoch", "best": "best epoch", "average": "averaged", "best-average": "averaged, best epoch"}


def pareto_front(cost: np.ndarray[Any, Any], gain: np.ndarray[Any, Any]) -> list[int]:
    """Return the indices of the Pareto-optimal points of cost (N,) and gain (N,), cheapest first.

    A point is left out if another one costs no more and gains no less, and differs from it.
    """
    order = sorted(range(len(cost)), key=lambda i: (cost[i], -gain[i]))
    front: list[int] = []
    for i in order:
        last = front[-1] if front else None
        if last is None or gain[i] > gain[last] or (gain[i] == gain[last] and cost[i] == cost[last]):
            front.append(i)
    return front


def has_costs(lines: pd.DataFrame) -> bool:
    """Return whether any cost of these lines is known."""
    return any((lines[name] > 0).any() for name in COSTS)


def plot_cost(lines: pd.DataFrame) -> Figure:
    """Plot the white-box worst case (%) against every known cost of training, including teachers.

    A point is a model, its marker the kind of weights; those of one training are joined. The step line is the Pareto
    front, and its points are named. Of many models, the others have a number with a key. A cross is a model without a
    rank, which cannot be on the front.

    Args:
        lines: one leaderboard. Lines without a worst case, and in each panel those without its cost, are left out.
    """
    lines = lines[lines["worst"].notna()].sort_values("worst", ascending=False).reset_index(drop=True)
    lines = lines.assign(
        name=[training_name(*values) for values in lines[["defense", "selection"]].itertuples(index=False)]
    )
    names = {name: number for number, name in enumerate(dict.fromkeys(lines["name"]), 1)}
    known = [name for name in COSTS if (lines[name] > 0).any()]
    few = len(names) <= MAX_MODELS
    rows = (len(known) + 1) // 2
    with figure_style():
        figure = new_figure(7.0 if few else 8.0, 3.2 if len(known) == 1 else 2.7 * rows)
        panels = figure.subplots(rows, min(len(known), 2), squeeze=False, sharey=True)
        for axes, cost in zip(panels.flat, known, strict=False):
            _plot_panel(axes, lines[lines[cost] > 0].reset_index(drop=True), cost, names, few)
        for axes in panels.flat[len(known) :]:
            axes.set_visible(False)
        for axes in panels[:, 0]:
            axes.set_ylabel("worst case, %")
        first = lines.iloc[0]
        threat = format_threat(first["threat_norm"], first["threat_eps"])
        figure.suptitle(
            f"Robust accuracy against training cost incl. teachers, {threat}", fontsize=10, x=0.01, ha="left"
        )
        kinds = [kind for kind in MARKERS if kind in set(lines["selection"])]
        handles = [
            Line2D([], [], color=COLORS[0], marker=MARKERS[kind], linestyle="", label=NAMES[kind]) for kind in kinds
        ]
        handles = handles if len(kinds) > 1 else []
        handles += [Line2D([], [], color=COLORS[1], label="Pareto front")]
        if (lines["unranked"] != "").any():
            handles.append(Line2D([], [], color=INK, marker="x", linestyle="", label="not ranked"))
        if not few:
            handles += [Line2D([], [], linestyle="", label=f"{number}  {name}") for name, number in names.items()]
        figure.legend(handles=handles, loc="outside right upper", handlelength=1.2, fontsize=8 if few else 7)
        return figure


def _plot_panel(axes: Axes, lines: pd.DataFrame, column: str, names: dict[str, int], few: bool) -> None:
    cost, gain = lines[column].to_numpy(float), 100 * lines["worst"].to_numpy(float)
    ranked = np.flatnonzero(lines["unranked"] == "")
    front = [int(ranked[i]) for i in pareto_front(cost[ranked], gain[ranked])]
    if few:
        low, high = lines["ci_low"].to_numpy(float), lines["ci_high"].to_numpy(float)
        errors = np.clip([gain - 100 * low, 100 * high - gain], 0, None)
        axes.errorbar(cost, gain, yerr=errors, fmt="none", ecolor=COLORS[5], elinewidth=1, capsize=2)
    axes.step(cost[front], gain[front], where="post", color=COLORS[1], zorder=1)
    top: dict[str, int] = {}  # the best point of every training, and whether one is on the front
    for name, own in lines.groupby("name", sort=False):
        axes.plot(cost[own.index], gain[own.index], color=COLORS[0], alpha=0.4, linewidth=0.8)
        on_front = [i for i in own.index if i in front]
        top[str(name)] = on_front[-1] if on_front else int(own.index[int(np.argmax(gain[own.index]))])
    for i, (selection, why) in enumerate(lines[["selection", "unranked"]].itertuples(index=False)):
        marker, color = ("x", INK) if why else (MARKERS.get(selection, "o"), COLORS[1 if i in front else 0])
        axes.plot(cost[i], gain[i], marker, color=color, markersize=6 if i in front else 4)
    for name, i in top.items():
        axes.annotate(
            name if few or i in front else str(names[name]),
            (cost[i], gain[i]),
            xytext=(3, 3) if i in front else (5, -3),
            textcoords="offset points",
            fontsize=8 if few else 7,
            fontweight="bold" if i in front else "normal",
        )
    label, form = COSTS[column]
    axes.margins(x=0.1, y=0.12)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: form(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(label)
