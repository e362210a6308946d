"""Figures of a store, in one style: matplotlib figures, as SVG inside the page, as PNG and SVG in a folder."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

INK = "#1b1e23"  # becomes currentColor inside the page, so that it is read on light and dark
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#7f7f7f")  # Okabe and Ito's
STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#9aa0a6",
    "grid.alpha": 0.35,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "text.parse_math": False,  # names may hold a dollar sign
    "svg.fonttype": "none",
    "svg.hashsalt": "robobench",
    "savefig.transparent": True,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}
MOST = 12  # networks in one figure; the tables hold them all
GAP = 4  # pixels between pictures


@contextmanager
def style() -> Iterator[None]:
    """Draw in the one style; a name in letters the font lacks is no reason to stop."""
    with rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        yield


def blank(width: float = 7.0, height: float = 3.2) -> Figure:
    """Return an empty figure, in inches, that belongs to no window."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def accuracy_curve(lines: pd.DataFrame, norm: str) -> Figure:
    """Draw accuracy in percent against eps, white-box worst case solid and transfer dashed; eps 0 is clean.

    Args:
        lines: of `board`, several radii of one norm and one set of images.
    """
    with style():
        figure = blank()
        axes = figure.add_subplot()
        networks = [part for _, part in lines.groupby(["defense", "model", "weights_digest"], dropna=False, sort=False)]
        networks.sort(key=lambda part: (-part["worst"].mean(), str(part["defense"].iloc[0])))
        for number, part in enumerate(networks[:MOST]):
            part = part.sort_values("threat_eps")
            first, color = part.iloc[0], COLORS[number % len(COLORS)]
            eps = [0.0, *part["threat_eps"]]
            line = "-" if number < len(COLORS) else "-."
            axes.plot(
                eps,
                100 * np.array([first["clean"], *part["worst"]]),
                line,
                marker="o",
                color=color,
                label=first["defense"],
            )
            if part["transfer"].notna().any():
                transfer = np.array([first["clean"], *part["transfer"].astype(float)])
                axes.plot(eps, 100 * transfer, ":", marker=".", color=color, alpha=0.8)
        axes.set(xlabel=f"eps ({norm})", ylabel="accuracy, %", ylim=(-2, 102))
        axes.set_title("Worst case over the attacks (solid) and under transfer (dotted)")
        if networks:
            figure.legend(loc="outside right upper")
        return figure


def pareto(cost: np.ndarray[Any, Any], gain: np.ndarray[Any, Any]) -> list[int]:
    """Return the points that nothing beats: no other costs less and gains as much; cheapest first. (N,), (N,)."""
    order = sorted(range(len(cost)), key=lambda i: (cost[i], -gain[i]))
    front: list[int] = []
    for i in order:
        if not front or gain[i] > gain[front[-1]]:
            front.append(i)
    return front


def cost_scatter(lines: pd.DataFrame) -> Figure:
    """Draw the white-box worst case in percent against the whole training cost, with the Pareto front.

    Args:
        lines: one board; lines without a cost are left out.
    """
    lines = lines[lines["total_train_seconds"].notna() & (lines["total_train_seconds"] > 0)]
    cost, gain = lines["total_train_seconds"].to_numpy(float), 100 * lines["worst"].to_numpy(float)
    with style():
        figure = blank()
        axes = figure.add_subplot()
        low, high = lines["ci_low"].to_numpy(float), lines["ci_high"].to_numpy(float)
        errors = np.clip([gain - 100 * low, 100 * high - gain], 0, None)
        axes.errorbar(cost, gain, yerr=errors, fmt="o", color=COLORS[0], ecolor=COLORS[5], elinewidth=1, capsize=2)
        front = pareto(cost, gain)
        axes.step(cost[front], gain[front], where="post", color=COLORS[1], label="Pareto front")
        named = front if len(lines) > MOST else range(len(lines))
        for number, i in enumerate(sorted(named, key=lambda i: cost[i])):  # neighbors: one above, one below
            place = (4, 4 if number % 2 == 0 else -10)
            axes.annotate(
                str(lines["defense"].iloc[i]), (cost[i], gain[i]), xytext=place, textcoords="offset points", fontsize=8
            )
        axes.margins(y=0.12)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set(xlabel="whole training cost, seconds", ylabel="worst case, %")
        axes.set_title("What robustness costs to train")
        axes.legend(loc="best")
        return figure


def stage_bars(costs: dict[str, dict[str, float]]) -> Figure:
    """Draw training seconds as stacked bars: a network a bar, a stage a color.

    Args:
        costs: network -> stage -> seconds, in order.
    """
    some = dict(sorted(costs.items(), key=lambda item: -sum(item[1].values()))[:MOST])
    names = list(dict.fromkeys(stage for stages in some.values() for stage in stages))
    with style():
        figure = blank(height=1.2 + 0.3 * len(some))
        axes = figure.add_subplot()
        left = np.zeros(len(some))
        for number, stage in enumerate(names):
            widths = np.array([stages.get(stage, 0.0) for stages in some.values()])
            hatch = "///" if number >= len(COLORS) else None
            axes.barh(
                range(len(some)),
                widths,
                left=left,
                color=COLORS[number % len(COLORS)],
                label=stage,
                hatch=hatch,
                height=0.7,
            )
            left += widths
        axes.set_yticks(range(len(some)), list(some))
        axes.invert_yaxis()
        axes.set(xlabel="seconds")
        axes.set_title("Training time, stage by stage")
        figure.legend(loc="outside right upper")
        return figure


def progress(left: Mapping[str, Sequence[float]], looks: Sequence[int], title: str) -> Figure:
    """Draw what is still right, in percent of the images attacked, against the looks an attack took.

    Args:
        left: network -> values at the first of `looks`.
    """
    with style():
        figure = blank()
        axes = figure.add_subplot()
        some = sorted(left.items(), key=lambda item: -item[1][-1])[:MOST]
        for number, (name, values) in enumerate(some):
            line = "-" if number < len(COLORS) else "-."
            axes.plot(looks[: len(values)], values, line, color=COLORS[number % len(COLORS)], label=name)
        axes.set(xlabel="looks at the model", ylabel="still right, % of the attacked", ylim=(-2, 102))
        axes.set_title(title)
        figure.legend(loc="outside right upper")
        return figure


def worst_images(images: np.ndarray[Any, Any], adv: np.ndarray[Any, Any], notes: list[str], title: str) -> Figure:
    """Show images, what the attack made of them, and the difference magnified around gray.

    Args:
        images, adv: (N, 3, H, W) in [0, 1].
        notes: a line under each image.
    """
    delta = adv - images
    factor = 0.5 / max(float(np.abs(delta).max()), 1e-6)
    rows = {"clean": images, "attacked": adv, f"difference x {factor:.2g}": 0.5 + factor * delta}
    return picture_rows(rows, title, notes)


def picture_rows(rows: Mapping[str, np.ndarray[Any, Any]], title: str, notes: Sequence[str] = ()) -> Figure:
    """Show named rows of pictures, (N, 3, H, W) each and of one size; values outside [0, 1] are cut off.

    Args:
        notes: words under each of the N columns.
    """
    grid = np.stack([[_pixels(picture) for picture in row] for row in rows.values()])
    lines, columns, height, width, _ = grid.shape
    sheet = np.zeros((lines, columns, height + GAP, width + GAP, 4), np.uint8)  # transparent between the pictures
    sheet[:, :, :height, :width, :3], sheet[:, :, :height, :width, 3] = grid, 255
    whole = sheet.transpose(0, 2, 1, 3, 4).reshape(lines * (height + GAP), columns * (width + GAP), 4)
    middles = [(np.arange(count) + 0.5) * (side + GAP) - GAP for count, side in ((lines, height), (columns, width))]
    with style():
        figure = blank(7.0, min(0.8 + 6.2 * lines * height / (columns * width), 6.0))
        axes = figure.add_subplot()
        axes.imshow(whole[:-GAP, :-GAP], interpolation="none")
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        axes.set_yticks(middles[0], list(rows), rotation=90, va="center")
        axes.set_xticks(middles[1] if notes else [], list(notes), fontsize=7)
        figure.suptitle(title, fontsize=10, x=0.01, ha="left")
        return figure


def _pixels(picture: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Turn (3, H, W) in [0, 1] into (H, W, 3) uint8 of about 96 pixels a side: small enough to stand in a page."""
    side = max(picture.shape[1:])
    step, times = max(1, round(side / 96)), max(1, round(96 / side))
    small = np.clip(picture[:, ::step, ::step], 0, 1).transpose(1, 2, 0)
    return np.round(255 * small.repeat(times, 0).repeat(times, 1)).astype(np.uint8)  # type: ignore[no-any-return]


def svg(figure: Figure, prefix: str | None = None) -> str:
    """Write a figure as SVG. With a prefix it may stand in a page: no header, its own ids, ink of the page's color."""
    out = io.StringIO()
    with style():
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    if prefix is None:
        return text
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}-", text)


def save(figures: dict[str, Figure], folder: Path) -> list[Path]:
    """Write every figure as PNG (150 dots an inch, white paper) and SVG; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in figures.items():
        with style():
            figure.savefig(folder / f"{name}.png", dpi=150, facecolor="white", transparent=False)
        (folder / f"{name}.svg").write_text(svg(figure))
        written += [folder / f"{name}.png", folder / f"{name}.svg"]
    return written
