"""Parts of a section of the page: the outcome in words, seeds combined, accuracy per class, training curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from robobench.report import figures
from robobench.report.by_defense import SEED, combine_seeds
from robobench.report.formatting import (
    MISSING,
    format_interval,
    format_percent,
    format_threat,
    iter_groups,
    named_models,
    threats,
)
from robobench.report.leaderboard import WORST_HEADING, default_columns, format_leaderboard, split_leaderboards
from robobench.report.outcome import outcome_sentences
from robobench.results.records import EvaluationRecord
from robobench.results.rows import TRANSFER_ONLY_IMAGES
from robobench.results.statistics import combine_worst_case
from robobench.store.artifacts import Store

if TYPE_CHECKING:
    from robobench.data.split import Dataset

MAX_CLASSES = 20  # of a table of accuracy per class


def drop_empty_columns(table: pd.DataFrame) -> pd.DataFrame:
    """Drop the columns that hold no value, but never the first."""
    kept = [n for n, c in enumerate(table.columns) if n == 0 or not table[c].isin([MISSING, ""]).all()]
    return table.iloc[:, kept]


def outcomes(rows: pd.DataFrame, lines: pd.DataFrame) -> list[str]:
    """Return one sentence per radius: of one model its counts, of several the best and what its interval contains."""
    models = named_models(rows)
    if len(models) == 1:
        return outcome_sentences(models[0][1])
    out = []
    for _, part in split_leaderboards(lines):
        best = part.sort_values("worst", ascending=False).iloc[0]
        where = f"{format_threat(best['threat_norm'], best['threat_eps'])} ({best['attacks']})"
        if best["worst"] == 0:
            out.append(f"At {where} no model classifies any of {best['examples']} images correctly under all attacks.")
            continue
        equal = [name for name in part.loc[part["best"], "defense"] if name != best["defense"]]
        inside = f" Inside its interval: {', '.join(equal)}." if equal else " No other model is inside its interval."
        out.append(
            f"At {where} {best['defense']} keeps most accuracy: {format_percent(best['worst'])} % "
            f"{format_interval(best['ci_low'], best['ci_high'])} of {best['examples']} images, "
            f"{format_percent(best['clean'])} % when clean.{inside}"
        )
    return out


def leaderboards(rows: pd.DataFrame, lines: pd.DataFrame) -> list[tuple[str, pd.DataFrame, list[bool]]]:
    """Return (title, table, best lines) of every leaderboard; seeds of a defense are combined, the matrix has each."""
    if lines["defense"].str.contains(SEED).any():
        lines = combine_seeds(lines, set(rows["source_digest"].dropna()))
    several = "n" in lines and (lines["n"] > 1).any()
    out = []
    for title, part in split_leaderboards(lines):
        columns = [name for name in default_columns(part) if name != "n" or several]
        table = format_leaderboard(part, columns).rename(columns={"worst": WORST_HEADING})
        out.append(
            (("mean ± standard deviation over seeds: " if several else "") + title, table, part["best"].tolist())
        )
    return out


def class_table(
    rows: pd.DataFrame, records: Sequence[EvaluationRecord], load_images: Callable[[], Dataset | str]
) -> tuple[str, pd.DataFrame] | str:
    """Return caption and table of accuracy per class, 'clean / worst case' in percent, at the smallest radius.

    Returns:
        A line that says why there is none, if the images or records are not available.
    """
    first = rows.sort_values(["threat_norm", "threat_eps"], ascending=[False, True]).iloc[0]
    norm, eps = first["threat_norm"], first["threat_eps"]
    dataset = load_images()
    if isinstance(dataset, str):
        return dataset.replace("no image panels", "no accuracy per class")
    labels = dataset.test.labels[: int(first["examples"])].numpy()
    classes = sorted(set(labels.tolist()))
    if len(classes) > MAX_CLASSES:
        return f"no accuracy per class: {len(classes)} classes are too many for a table; the records have every image"
    lines: dict[str, dict[str, str]] = {}
    for name, part in named_models(rows):
        found = _outcomes_at(records, part.iloc[0], norm, eps)
        if found is not None:
            lines[name] = _class_line(*found, labels, classes, dataset.class_name)
    if not lines:
        return "no accuracy per class: there are no records of these images"
    table = pd.DataFrame.from_dict(lines, orient="index")
    table.index.name = "defense"
    caption = f"accuracy per class, %: clean / white-box worst case at {format_threat(norm, eps)}"
    return caption, table.reset_index()


def _outcomes_at(
    records: Sequence[EvaluationRecord], model: pd.Series[Any], norm: str, eps: float
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]] | None:
    """Return (clean, robust) outcomes (N,) bool of a model at a radius; None if there are none."""
    wanted = {name: model[name] for name in ("weights_digest", "examples", "data_digest", "precision", "selection")}
    wanted |= {"threat_norm": norm, "threat_eps": eps, "protocol": "white-box", "status": "ok"}
    same = [r for r in records if all(dict(r)[name] == value for name, value in wanted.items())]
    robust = combine_worst_case(same)
    if robust is None:
        return None
    clean = np.array([bit == "1" for bit in same[0]["clean_bits"] or ""])
    return clean, np.asarray(robust.values, dtype=bool)


def _class_line(
    clean: np.ndarray[Any, Any],
    robust: np.ndarray[Any, Any],
    labels: np.ndarray[Any, Any],
    classes: list[int],
    name: Callable[[int], str],
) -> dict[str, str]:
    parts = {c: (clean[labels == c].mean(), robust[labels == c].mean()) for c in classes}
    worst = min(classes, key=lambda c: (parts[c][1], parts[c][0]))
    cells = {name(c): f"{100 * was:.0f} / {100 * now:.0f}" for c, (was, now) in parts.items()}
    return {**cells, "worst class": f"{name(worst)}: {100 * parts[worst][0]:.0f} / {100 * parts[worst][1]:.0f}"}


def training_curves(models: Sequence[tuple[str, pd.DataFrame, str | None]], store: Store) -> Figure | None:
    """Plot the training loss of every model's last stage by epoch, from metrics.csv; None if nothing is stored."""
    curves: dict[str, list[float]] = {}
    for name, _, folder in models:
        file = store.folder("model", folder) / "metrics.csv" if folder else None
        if file is None or not file.is_file():
            continue
        table = pd.read_csv(file)
        table = table[table["metric"] == "loss"]
        for stage in list(iter_groups(table, ["stage"]))[-1:]:
            curves[name] = stage.sort_values("epoch")["value"].tolist()
    curves = {name: values for name, values in curves.items() if len(values) > 1}
    return figures.plot_training_curves(curves) if curves else None


def evidence(flag: str, rows: pd.DataFrame, timing: dict[str, Any]) -> str:
    """Return the numbers behind a flag: the metrics of the stage that set it, or the accuracies of its rows."""
    for stage in timing.get("stages", []):
        if flag in stage.get("flags", []):
            metrics = ", ".join(f"{name} {value:.4g}" for name, value in stage["metrics"].items())
            return f"set by stage '{stage['name']}': {metrics or 'no metrics'}"
    flagged = rows[rows["flags"].fillna("").astype(str).str.split(",").map(lambda flags: flag in flags)]
    out = []
    for norm, eps in threats(flagged):
        at = flagged[(flagged["threat_norm"] == norm) & (flagged["threat_eps"] == eps)]
        worst = at.drop_duplicates("protocol").set_index("protocol")["worst_case_accuracy"]
        accuracies = ", ".join(f"{protocol} {format_percent(value)} %" for protocol, value in worst.items())
        out.append(f"{format_threat(norm, eps)}: clean {format_percent(at['clean_accuracy'].max())} %, {accuracies}")
    rule = (
        f"; rule: {TRANSFER_ONLY_IMAGES} images or more, white-box at most 0.1 of clean, transfer at least 0.5 of clean"
        if flag == "transfer-only"
        else ""
    )
    return "; ".join(out) + rule
