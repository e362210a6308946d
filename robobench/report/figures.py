"""Figures of the report in one style, as SVG for the page and as PNG and SVG files."""

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
from matplotlib.patches import Ellipse

from robobench.core.formatting import format_eps
from robobench.report.formatting import format_threat

INK = "#1b1e23"  # becomes currentColor in the page, which has a light and a dark mode
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#7f7f7f")  # Okabe and Ito
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
    "text.parse_math": False,  # a name may contain a dollar sign
    "svg.fonttype": "none",
    "svg.hashsalt": "robobench",
    "savefig.transparent": True,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}
MAX_MODELS = 12  # in one figure
IMAGE_GAP = 4  # pixels between images


@contextmanager
def figure_style() -> Iterator[None]:
    """Draw in the report's style, without a warning about letters that the font lacks."""
    with rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        yield


def new_figure(width: float = 7.0, height: float = 3.2) -> Figure:
    """Return an empty figure, size in inches, without a window."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plot_accuracy_curve(lines: pd.DataFrame, norm: str) -> Figure:
    """Plot accuracy (%) against eps: white-box worst case solid, transfer dotted, clean accuracy at eps 0.

    Args:
        lines: of `rank_models`, with the radii of one norm, on the same images.
    """
    with figure_style():
        figure = new_figure()
        axes = figure.add_subplot()
        models = [part for _, part in lines.groupby(["defense", "model", "weights_digest"], dropna=False, sort=False)]
        models.sort(key=lambda part: (-part["worst"].mean(), str(part["defense"].iloc[0])))
        radii: set[float] = set()
        for number, part in enumerate(models[:MAX_MODELS]):
            part = part.sort_values("threat_eps")
            first, color = part.iloc[0], COLORS[number % len(COLORS)]
            eps = [0.0, *part["threat_eps"]]
            radii.update(eps)
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
        axes.set_xticks(sorted(radii), [format_eps(eps) for eps in sorted(radii)])
        axes.set(xlabel=f"eps ({norm})", ylabel="accuracy, %", ylim=(-2, 102))
        axes.set_title("Worst case over the attacks, white-box (solid) and transfer (dotted)")
        if models:
            figure.legend(loc="outside right upper")
        return figure


def plot_clean_against_robust(lines: pd.DataFrame) -> Figure:
    """Plot the worst case (%) against clean accuracy (%): a dot for every model, a color for every defense.

    Filled: white-box, with the area of the dot by training time. Hollow: transfer, joined to it by a line. A shaded
    ellipse is the mean plus and minus one standard deviation over the seeds of a defense.

    Args:
        lines: one leaderboard.
    """
    seconds = lines["total_train_seconds"].astype(float)
    area = (120 * seconds / seconds.max()).fillna(40).clip(lower=15) if seconds.notna().any() else seconds.fillna(40)
    name = lines["defense"].str.replace(r" \(.*", "", regex=True)
    with figure_style():
        figure = new_figure(7.0, 4.2)
        axes = figure.add_subplot()
        for number, (defense, part) in enumerate(lines.groupby(name, sort=False)):
            color, marker = COLORS[number % len(COLORS)], "os"[number // len(COLORS) % 2]
            clean, worst = 100 * part["clean"].to_numpy(float), 100 * part["worst"].to_numpy(float)
            transfer = 100 * part["transfer"].to_numpy(float)
            axes.vlines(clean, worst, transfer, color=color, alpha=0.35, linewidth=0.8)
            axes.scatter(clean, transfer, s=area[part.index], facecolors="none", edgecolors=color, marker=marker)
            axes.scatter(clean, worst, s=area[part.index], color=color, marker=marker, label=str(defense))
            if len(part) > 1:
                size = 2 * clean.std(ddof=1), 2 * worst.std(ddof=1)
                axes.add_patch(Ellipse((clean.mean(), worst.mean()), *size, color=color, alpha=0.15))
        axes.set(xlabel="clean accuracy, %", ylabel="worst-case accuracy, %")
        axes.margins(0.08)
        first = lines.iloc[0]
        axes.set_title(
            f"{format_threat(first['threat_norm'], first['threat_eps'])}: white-box (filled), transfer (hollow)"
        )
        legend = figure.legend(loc="outside right upper")
        for handle in legend.legend_handles:
            handle.set_sizes([40])  # type: ignore[union-attr]
        return figure


def plot_stage_times(times: dict[str, dict[str, float]]) -> Figure:
    """Plot training time as stacked bars: a bar for every model, a color for every stage.

    Args:
        times: model -> stage -> seconds, in order.
    """
    some = dict(sorted(times.items(), key=lambda item: -sum(item[1].values()))[:MAX_MODELS])
    names = list(dict.fromkeys(stage for stages in some.values() for stage in stages))
    with figure_style():
        figure = new_figure(height=1.2 + 0.3 * len(some))
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
        axes.set_title("Training time by stage")
        figure.legend(loc="outside right upper")
        return figure


def plot_traces(accuracy: Mapping[str, Sequence[float]], steps: Sequence[int], title: str) -> Figure:
    """Plot the images that an attack has not yet misclassified (% of those attacked) against its steps.

    Args:
        accuracy: model -> values at the first of `steps`; step 0 is the start.
    """
    with figure_style():
        figure = new_figure()
        axes = figure.add_subplot()
        some = sorted(accuracy.items(), key=lambda item: -item[1][-1])[:MAX_MODELS]
        for number, (name, values) in enumerate(some):
            line = "-" if number < len(COLORS) else "-."
            axes.plot(steps[: len(values)], values, line, color=COLORS[number % len(COLORS)], label=name)
        axes.set(xlabel="attack step", ylabel="not misclassified, % of attacked images", ylim=(-2, 102))
        axes.set_title(title)
        figure.legend(loc="outside right upper")
        return figure


def plot_training_curves(curves: Mapping[str, Sequence[float]]) -> Figure:
    """Plot the training loss against the epoch: a line for every model.

    Args:
        curves: model -> loss of each epoch.
    """
    with figure_style():
        figure = new_figure()
        axes = figure.add_subplot()
        for number, (name, values) in enumerate(list(curves.items())[:MAX_MODELS]):
            line = "-" if number < len(COLORS) else "-."
            axes.plot(range(1, len(values) + 1), values, line, color=COLORS[number % len(COLORS)], label=name)
        axes.set(xlabel="epoch", ylabel="training loss")
        axes.set_title("Training loss of the last stage")
        figure.legend(loc="outside right upper")
        return figure


def plot_adversarial_images(
    images: np.ndarray[Any, Any], adv: np.ndarray[Any, Any], notes: list[str], title: str
) -> Figure:
    """Show images, their adversarial examples, and the differences magnified around gray.

    Args:
        images, adv: (N, 3, H, W) in [0, 1].
        notes: a text below each image.
    """
    delta = adv - images
    factor = 0.5 / max(float(np.abs(delta).max()), 1e-6)
    rows = {"clean": images, "attacked": adv, f"difference x {factor:.2g}": 0.5 + factor * delta}
    return plot_image_rows(rows, title, notes)


def plot_image_rows(rows: Mapping[str, np.ndarray[Any, Any]], title: str, notes: Sequence[str] = ()) -> Figure:
    """Show named rows of images, (N, 3, H, W) each and of one size. Values outside [0, 1] are clipped.

    Args:
        notes: a text below each of the N columns.
    """
    pixels = np.stack([[_to_pixels(image) for image in row] for row in rows.values()])
    lines, columns, height, width, _ = pixels.shape
    sheet = np.zeros((lines, columns, height + IMAGE_GAP, width + IMAGE_GAP, 4), np.uint8)  # transparent gaps
    sheet[:, :, :height, :width, :3], sheet[:, :, :height, :width, 3] = pixels, 255
    whole = sheet.transpose(0, 2, 1, 3, 4).reshape(lines * (height + IMAGE_GAP), columns * (width + IMAGE_GAP), 4)
    centers = [
        (np.arange(count) + 0.5) * (side + IMAGE_GAP) - IMAGE_GAP for count, side in ((lines, height), (columns, width))
    ]
    with figure_style():
        figure = new_figure(7.0, min(0.8 + 6.2 * lines * height / (columns * width), 6.0))
        axes = figure.add_subplot()
        axes.imshow(whole[:-IMAGE_GAP, :-IMAGE_GAP], interpolation="none")
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        axes.set_yticks(centers[0], list(rows), rotation=90, va="center")
        axes.set_xticks(centers[1] if notes else [], list(notes), fontsize=7)
        figure.suptitle(title, fontsize=10, x=0.01, ha="left")
        return figure


def _to_pixels(image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Convert (3, H, W) in [0, 1] to (H, W, 3) uint8 with about 96 pixels a side, to keep the page small."""
    side = max(image.shape[1:])
    step, times = max(1, round(side / 96)), max(1, round(96 / side))
    small = np.clip(image[:, ::step, ::step], 0, 1).transpose(1, 2, 0)
    return np.round(255 * small.repeat(times, 0).repeat(times, 1)).astype(np.uint8)  # type: ignore[no-any-return]


def to_svg(figure: Figure, prefix: str | None = None) -> str:
    """Return a figure as SVG. A prefix makes it part of a page: no header, unique ids, the text color of the page."""
    out = io.StringIO()
    with figure_style():
        if (layout := figure.get_layout_engine()) is not None:  # savefig would draw twice for it
            layout.execute(figure)
            figure.set_layout_engine(None)
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    if prefix is None:
        return text
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}-", text)


def save_figures(figures: dict[str, Figure], folder: Path) -> list[Path]:
    """Write figures by name as PNG (150 dpi, white background) and SVG; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in figures.items():
        with figure_style():
            figure.savefig(folder / f"{name}.png", dpi=150, facecolor="white", transparent=False)
        (folder / f"{name}.svg").write_text(to_svg(figure))
        written += [folder / f"{name}.png", folder / f"{name}.svg"]
    return written
