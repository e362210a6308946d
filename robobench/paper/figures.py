"""Figures of the paper, drawn from the results in a store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from robobench.core.console import Reporter
from robobench.core.numbers import parse_eps
from robobench.core.registry import unknown_name
from robobench.errors import RequestError
from robobench.execution.run import execute_request
from robobench.paper import published
from robobench.paper.comparison import run_table
from robobench.paper.requests import Scale, method_request
from robobench.planning.plan import TrainingJob
from robobench.planning.planner import prepare
from robobench.planning.request import ExperimentConfig
from robobench.report.figures import COLORS, figure_style, new_figure, plot_image_rows
from robobench.report.image_panels import stage_state_loader
from robobench.store.artifacts import Store

IMAGES = 8
PROTOCOL_FIELDS = {"transfer": "accuracy", "white-box": "white_box_accuracy"}


def plot_figure(name: str, scale: Scale, base: ExperimentConfig, file: Path, reporter: Reporter) -> None:
    """Draw a figure into `file`. Results that the store lacks are computed first.

    Raises:
        RequestError: unknown figure, unknown file format, or the folder of `file` does not exist.
    """
    plots = {"2": plot_reconstructions, "eps": plot_accuracy_vs_eps, "6": plot_mask_heat_maps}
    if name not in plots:
        raise unknown_name("figure", name, plots)
    if file.suffix.lstrip(".").lower() not in new_figure().canvas.get_supported_filetypes():
        raise RequestError(f"--out '{file}' is not an image file; name it .png, .pdf or .svg")
    if not file.parent.is_dir():
        raise RequestError(f"--out '{file}': the folder does not exist; create it first")
    figure = plots[name](scale, base, reporter)
    with figure_style():
        figure.savefig(file, dpi=150, facecolor="white", transparent=False)


def plot_reconstructions(scale: Scale, base: ExperimentConfig, reporter: Reporter) -> Figure:
    """Plot test images, their masked versions, and the autoencoder's reconstructions."""
    request = method_request(scale, base)
    execute_request(request, reporter)
    plan, dataset = prepare(request)
    job = plan.models[0]
    assert isinstance(job, TrainingJob)
    images = dataset.test.images(torch.arange(IMAGES)).cpu()
    shown = job.defense(job.config).visualize(stage_state_loader(Store(base.out), job.recipe), images, job.seed)
    if not shown:
        raise RequestError(
            f"'{base.out}' has the trained model '{job.name}' but not its earlier stages; "
            f"remove '{job.folder}' there to train them again in the next run"
        )
    rows = {name: row.numpy() for name, row in shown.items()}
    return plot_image_rows(rows, f"{job.dataset}, autoencoder of {job.name}")


def plot_accuracy_vs_eps(scale: Scale, base: ExperimentConfig, reporter: Reporter) -> Figure:
    """Plot accuracy under PGD from eps 0 (clean) to 16/255 for every defense of table 2, one panel per protocol."""
    rows, _ = run_table("2", scale, base, reporter)
    radii = {f"PGD {printed}": parse_eps(text, "Linf") for printed, text in scale.values["eps"].items()}
    with figure_style():
        figure = new_figure(10, 4)
        panels = figure.subplots(1, 2, sharey=True)
        for panel, (protocol, field) in zip(panels, PROTOCOL_FIELDS.items(), strict=True):
            for number, name in enumerate(dict.fromkeys(row["row"] for row in rows if row["id"])):
                cells = {row["column"]: row for row in rows if row["row"] == name}
                accuracies = {0.0: cells["clean"]["accuracy"]}
                accuracies |= {eps: cells[column][field] for column, eps in radii.items()}  # type: ignore[literal-required]
                known = {eps: 100 * value for eps, value in accuracies.items() if value is not None}
                color = COLORS[number % len(COLORS)]
                if known:
                    panel.plot(list(known), list(known.values()), marker="o", color=color, label=name)
            panel.set(title=protocol, xlabel="eps (Linf), PGD", ylim=(-2, 102))
        panels[0].set_ylabel("accuracy, %")
        panels[1].legend()
        figure.suptitle(f"{scale.dataset('CIFAR-10')}, {scale.model('ResNet50')}")
        return figure


def plot_mask_heat_maps(scale: Scale, base: ExperimentConfig, reporter: Reporter) -> Figure:
    """Plot table 6, student patch by mask ratio, clean and under PGD: published above, measured below."""
    rows, _ = run_table("6", scale, base, reporter)
    records = {r["id"]: r for r in published.records("6")}
    patches = list(dict.fromkeys(r["student_patch"] for r in records.values()))
    ratios = list(dict.fromkeys(r["student_mask_ratio"] for r in records.values()))
    columns = list(dict.fromkeys(row["column"] for row in rows))
    with figure_style():
        figure = new_figure(4.5 * len(columns), 7)
        panels = figure.subplots(2, len(columns))
        for number, column in enumerate(columns):
            published_grid, measured_grid = ([[float("nan")] * len(ratios) for _ in patches] for _ in range(2))
            for row in rows:
                if row["column"] != column or row["id"] is None:
                    continue
                record = records[row["id"]]
                i, j = patches.index(record["student_patch"]), ratios.index(record["student_mask_ratio"])
                published_grid[i][j] = record["value"]
                if row["accuracy"] is not None:
                    measured_grid[i][j] = 100 * row["accuracy"]
            plot_heat_map(panels[0, number], published_grid, patches, ratios, f"paper: {column}")
            plot_heat_map(panels[1, number], measured_grid, patches, ratios, f"ours: {column}")
        figure.suptitle(f"table 6; ours on {scale.dataset('CIFAR-10')}, {scale.model('ResNet50')}, transfer")
        return figure


def plot_heat_map(
    panel: Axes, grid: Sequence[Sequence[float]], patches: Sequence[float], ratios: Sequence[float], title: str
) -> None:
    """Plot a grid of percentages with the numbers written into the cells.

    Args:
        grid: one row per patch size, one column per mask ratio.
    """
    panel.imshow(grid, cmap="viridis", alpha=0.6, aspect="auto")
    panel.grid(False)
    panel.set_yticks(range(len(patches)), [f"{patch:g} px" for patch in patches])
    panel.set_xticks(range(len(ratios)), [f"{ratio:g}" for ratio in ratios])
    panel.set(title=title, xlabel="student mask ratio", ylabel="student patch (as printed)")
    for i, values in enumerate(grid):
        for j, value in enumerate(values):
            panel.text(j, i, f"{value:.1f}", ha="center", va="center")
