"""Pictures of the paper's kind, from what a store holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from robobench.core.console import Reporter
from robobench.core.registry import unknown_name
from robobench.core.threat import parse_eps
from robobench.errors import RequestError
from robobench.execution.run import execute_request
from robobench.paper import published
from robobench.paper.comparison import run
from robobench.paper.requests import Scale, method_request
from robobench.planning.plan import TrainingJob
from robobench.planning.planner import prepare
from robobench.planning.request import ExperimentConfig
from robobench.report.figures import picture_rows
from robobench.report.image_panels import states
from robobench.store.artifacts import Store

IMAGES = 8


def pyplot() -> Any:
    """Import matplotlib, drawing to files only."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def draw(name: str, scale: Scale, base: ExperimentConfig, file: Path, reporter: Reporter) -> None:
    """Draw a figure into `file`; what the store lacks for it is run first.

    Raises:
        RequestError: no such figure, or a file name it cannot write.
    """
    if name not in published.FIGURES:
        raise unknown_name("figure", name, published.FIGURES)
    plt = pyplot()
    if file.suffix.lstrip(".").lower() not in plt.figure().canvas.get_supported_filetypes():
        raise RequestError(f"--out '{file}' is no picture file; name it .png, .pdf or .svg")
    if not file.parent.is_dir():
        raise RequestError(f"--out '{file}': the folder does not exist; create it first")
    drawing = {"2": reconstructions, "eps": accuracy_against_eps, "6": heat_maps}[name](plt, scale, base, reporter)
    drawing.savefig(file, dpi=150, bbox_inches="tight")
    plt.close("all")


def reconstructions(plt: Any, scale: Scale, base: ExperimentConfig, reporter: Reporter) -> Any:
    """Draw test images, what the autoencoder sees of them, and what it makes of that."""
    request = method_request(scale, base)
    execute_request(request, reporter)
    plan, dataset = prepare(request)
    training = plan.models[0]
    assert isinstance(training, TrainingJob)
    images = dataset.test.images(torch.arange(IMAGES)).cpu()
    left = states(Store(base.out), training.recipe)
    shown = training.defense(training.config).visualize(left, images, training.seed)
    if not shown:
        raise RequestError(
            f"'{base.out}' has the trained '{training.name}' but not the stages before; "
            f"remove '{training.folder}' there, and the next run makes them again"
        )
    rows = {name: row.numpy() for name, row in shown.items()}
    return picture_rows(rows, f"{training.dataset}, {training.name}'s autoencoder")


def accuracy_against_eps(plt: Any, scale: Scale, base: ExperimentConfig, reporter: Reporter) -> Any:
    """Draw accuracy under PGD from 0 (clean) to 16/255 for every defense of table 2, a panel a protocol."""
    lines, _ = run("2", scale, base, reporter)
    radii = {f"PGD {eps}": parse_eps(text, "Linf") for eps, text in scale.values["eps"].items()}
    drawing, panels = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    for panel, (protocol, field) in zip(
        panels, (("transfer", "accuracy"), ("white-box", "white_box_accuracy")), strict=True
    ):
        for row in dict.fromkeys(entry["row"] for entry in lines if entry["id"]):
            mine = {entry["column"]: entry for entry in lines if entry["row"] == row}
            points = [(0.0, mine["clean"]["accuracy"])]
            points += [(radius, mine[column][field]) for column, radius in radii.items()]
            known = [(eps, 100 * value) for eps, value in points if value is not None]
            panel.plot(*zip(*known, strict=True), marker="o", label=row) if known else None
        panel.set(title=protocol, xlabel="eps (Linf), PGD", ylim=(-2, 102))
    panels[0].set_ylabel("accuracy, %")
    panels[1].legend(fontsize="small")
    drawing.suptitle(f"{scale.dataset('CIFAR-10')}, {scale.model('ResNet50')}")
    return drawing


def heat_maps(plt: Any, scale: Scale, base: ExperimentConfig, reporter: Reporter) -> Any:
    """Draw table 6: student patch by mask ratio, clean and under PGD, published above and ours below."""
    lines, _ = run("6", scale, base, reporter)
    records = {r["id"]: r for r in published.records("6")}
    sides = {name: list(dict.fromkeys(r[name] for r in records.values())) for name in ("student_patch", RATIO)}
    columns = list(dict.fromkeys(entry["column"] for entry in lines))
    drawing, axes = plt.subplots(2, len(columns), figsize=(4.5 * len(columns), 7))
    for column, name in enumerate(columns):
        for row, (whose, field, factor) in enumerate((("paper", "value", 1), ("ours", "accuracy", 100))):
            grid = [[float("nan")] * len(sides[RATIO]) for _ in sides["student_patch"]]
            for entry in lines:
                if entry["column"] == name and entry[field] is not None:
                    r = records[entry["id"]]
                    place = sides["student_patch"].index(r["student_patch"]), sides[RATIO].index(r[RATIO])
                    grid[place[0]][place[1]] = factor * entry[field]
            heat_map(axes[row, column], grid, sides, f"{whose}: {name}")
    drawing.suptitle(f"table 6; ours on {scale.dataset('CIFAR-10')}, {scale.model('ResNet50')}, transfer")
    drawing.tight_layout()
    return drawing


RATIO = "student_mask_ratio"


def heat_map(panel: Any, grid: list[list[float]], sides: dict[str, list[float]], title: str) -> None:
    """Draw one grid of percentages with its figures written in."""
    panel.imshow(grid, cmap="viridis", alpha=0.6, aspect="auto")
    patches, ratios = sides["student_patch"], sides[RATIO]
    panel.set_yticks(range(len(patches)), [f"{patch:g} px" for patch in patches])
    panel.set_xticks(range(len(ratios)), [f"{ratio:g}" for ratio in ratios])
    panel.set(title=title, xlabel="student mask ratio", ylabel="student patch (as printed)")
    for row, values in enumerate(grid):
        for column, value in enumerate(values):
            panel.text(column, row, f"{value:.1f}", ha="center", va="center")
