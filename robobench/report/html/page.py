"""What the HTML report shows of each data set: tables, figures, and the command that reproduces each row."""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from robobench.attack_engine.trace import TRACE_STEPS
from robobench.errors import ArtifactError
from robobench.planning.repro_command import ReproCommands
from robobench.report import figures
from robobench.report.cost_figure import has_costs, plot_cost
from robobench.report.formatting import (
    COMPARABLE_KEYS,
    add_names,
    format_text,
    format_threat,
    iter_groups,
    iter_rows,
    list_flags,
    named_models,
    threats,
)
from robobench.report.html import parts
from robobench.report.html.document import ModelDetails, PageFigure, Section, Table
from robobench.report.image_panels import (
    AdversarialPanel,
    LoadImages,
    load_test_images,
    method_panel,
    most_misclassified_images,
)
from robobench.report.leaderboard import rank_models, split_leaderboards
from robobench.report.matrix import PROTOCOLS, budget_notes, cost_table, failure_notes, matrix
from robobench.results.checks import raised_by_examination
from robobench.results.records import EvaluationRecord
from robobench.store.artifacts import WEIGHT_FILES, Store

PROVENANCE = (
    *("defense", "defense_version", "model", "stem", "image_size", "interpolation", "dataset", "data_digest", "preset"),
    *("train_norm", "train_eps", "seed", "selection", "precision", "threads", "hardware", "torch_version", "commit"),
    *("config_digest", "weights_digest"),
)

ModelFolders = dict[tuple[Any, ...], str]  # (defense, seed, digest of the weights) -> folder in the store
NamedModels = list[tuple[str, pd.DataFrame, str | None]]  # name in tables, rows, folder in the store


def make_sections(
    rows: pd.DataFrame, place: Path, data_dir: Path | None = None, keys: Collection[str] | None = None
) -> list[Section]:
    """Collect everything that a store or snapshot contains. What is not available is replaced by a note.

    Args:
        data_dir: folder of data sets, for figures of images.
        keys: of the records to read; default: all of the store.
    """
    store = Store(place)
    repro = ReproCommands(place, keys)
    folders: ModelFolders = {}
    for name, config in repro.configs.items():
        files = store.manifest(store.folder("model", name))["files"]
        for file in WEIGHT_FILES.values():
            folders[config["defense"], config["seed"], files.get(file, "")[:16]] = name
    groups = iter_groups(rows, COMPARABLE_KEYS)
    return [_make_section(part, f"f{n}", store, repro, folders, data_dir) for n, part in enumerate(groups, 1)]


def _make_section(
    rows: pd.DataFrame, prefix: str, store: Store, repro: ReproCommands, folders: ModelFolders, data_dir: Path | None
) -> Section:
    rows = add_names(rows)
    first, lines = rows.iloc[0], rank_models(rows)
    records = [record for model_records in repro.records.values() for record in model_records]
    identity = ["defense", "seed", "weights_digest"]
    models: NamedModels = [
        (name, part, folders.get(tuple(part.iloc[0][identity]))) for name, part in named_models(rows)
    ]
    load_images = functools.cache(lambda: load_test_images(store, str(first["data_digest"]), data_dir))
    panels, notes = _image_figures(prefix, models, store, records, str(first["data_digest"]), load_images)
    tables, more_notes = _matrices(rows, records, load_images)
    return Section(
        f"{first['dataset']}, {', '.join(sorted(set(rows['model'])))}, {first['examples']} test images",
        parts.outcomes(rows, lines),
        _leaderboards(rows, lines, len(models)),
        tables,
        [
            *_accuracy_figures(prefix, lines),
            *_trace_figures(prefix, rows, records),
            *_stage_figures(prefix, models, store),
            *panels,
        ],
        [_model_details(name, part, store, repro, folder) for name, part, folder in models],
        [*failure_notes(rows), *dict.fromkeys([*notes, *more_notes]), *_limits(len(models))],
    )


def _leaderboards(rows: pd.DataFrame, lines: pd.DataFrame, count: int) -> list[Table]:
    """Return the leaderboards, with seeds combined; none for a single model, which the matrix shows."""
    if count == 1:
        return []
    return [_to_table(title, table, best=best) for title, table, best in parts.leaderboards(rows, lines)]


def _matrices(
    rows: pd.DataFrame, records: Sequence[EvaluationRecord], load_images: LoadImages
) -> tuple[list[Table], list[str]]:
    """Return the matrices of both protocols, accuracy per class, and costs; and notes about what is missing."""
    out, notes = [], []
    for protocol, meaning in PROTOCOLS.items():
        part = rows[rows["protocol"] == protocol]
        if len(part):
            table = matrix(part, protocol).reset_index()
            out.append(_to_table(f"{protocol} accuracy, %: {meaning}", table, notes=budget_notes(part)))
    by_class = parts.class_table(rows, records, load_images)
    if isinstance(by_class, str):
        notes.append(by_class)
    else:
        out.append(_to_table(*by_class))
    costs = _to_table("cost and flags", cost_table(rows).reset_index())
    return [*out, *([costs] if len(costs.head) > 2 else [])], notes


def _limits(count: int) -> list[str]:
    """Say which models the figures leave out."""
    most = figures.MAX_MODELS
    return [f"Figures with a line for each model show {most} of {count}; the tables have all."] if count > most else []


def _to_table(caption: str, table: pd.DataFrame, **more: Any) -> Table:
    table = parts.drop_empty_columns(table)
    return Table(caption, list(table.columns), table.to_numpy().tolist(), **more)


def _accuracy_figures(prefix: str, lines: pd.DataFrame) -> list[PageFigure]:
    """Plot accuracy against eps for every norm, and against training cost at its largest radius."""
    out = []
    for norm in dict.fromkeys(norm for norm, _ in threats(lines)):
        some = _largest_leaderboards(lines[lines["threat_norm"] == norm])
        for at in iter_groups(some, ["threat_eps"]):
            if len(at) > 1:
                eps = at["threat_eps"].iloc[0]
                caption = (
                    "A dot for each model, its area by training time. Filled: white-box worst case. Hollow: transfer. "
                    "Shaded: mean plus and minus one standard deviation over the seeds of a defense."
                )
                name = f"{prefix}-clean-{norm}-{eps:.4g}".replace(".", "_")
                out.append(PageFigure(name, figures.plot_clean_against_robust(at.reset_index(drop=True)), caption))
        caption = "Solid: white-box worst case, an upper bound of robustness. Dotted: transfer. eps 0: clean accuracy."
        out.append(PageFigure(f"{prefix}-eps-{norm}", figures.plot_accuracy_curve(some, norm), caption))
        at = some[some["threat_eps"] == some["threat_eps"].max()]
        if has_costs(at):
            caption = (
                "Costs include every stage and teacher that had to run. The line is the Pareto front: no other model "
                "is both cheaper and more robust. Compare times of the same hardware only."
            )
            out.append(PageFigure(f"{prefix}-cost-{norm}", plot_cost(at), caption))
    return out


def _largest_leaderboards(lines: pd.DataFrame) -> pd.DataFrame:
    """Keep for every radius the leaderboard with most models. Only its lines may share a figure."""
    by_radius = iter_groups(lines, ["threat_eps"])
    return pd.concat([max((part for _, part in split_leaderboards(at)), key=len) for at in by_radius])


def _trace_figures(prefix: str, rows: pd.DataFrame, records: Sequence[EvaluationRecord]) -> list[PageFigure]:
    """Plot for every norm and radius the trace of the attack with most models (then most steps)."""
    wanted = {(r.weights_digest, r.examples, r.data_digest) for r in iter_rows(rows)}
    traced = [
        r for r in records if (r["weights_digest"], r["examples"], r["data_digest"]) in wanted and r.get("traces")
    ]
    names = {part.iloc[0]["weights_digest"]: name for name, part in named_models(rows)}
    out = []
    found = {(r["threat_norm"], r["threat_eps"]) for r in traced}
    for norm, eps in sorted(found, key=lambda threat: (threat[0] != "Linf", *threat)):
        by_attack: dict[str, dict[str, list[float]]] = {}
        for r in traced:
            if (r["threat_norm"], r["threat_eps"]) == (norm, eps) and r["attack"] in r["traces"] and r["steps"] != 1:
                accuracy = [100 * (1 - rate) for rate in r["traces"][r["attack"]]["success_rate"]]
                by_attack.setdefault(r["attack"], {})[names[r["weights_digest"]]] = accuracy
        if by_attack:
            attack = max(by_attack, key=lambda a: (len(by_attack[a]), max(map(len, by_attack[a].values())), a))
            caption = "If a curve still falls at its end, more steps would find more adversarial examples."
            title = f"{attack} at {format_threat(norm, eps)}, step by step"
            figure = figures.plot_traces(by_attack[attack], TRACE_STEPS, title)
            name = f"{prefix}-progress-{norm}-{eps:.4g}".replace(".", "_")
            out.append(PageFigure(name, figure, caption))
    return out


def _stage_figures(prefix: str, models: NamedModels, store: Store) -> list[PageFigure]:
    """Plot the training time of every model by stage."""
    times = {name: _stage_seconds(store, folder) for name, _, folder in models if folder}
    times = {name: seconds for name, seconds in times.items() if seconds}
    caption = "Every stage that had to run. 'from NAME' is another training that this one required."
    out = [PageFigure(f"{prefix}-stages", figures.plot_stage_times(times), caption)] if times else []
    curves = parts.training_curves(models, store)
    caption = "The losses of different methods are different quantities; compare the course, not the height."
    return [*out, PageFigure(f"{prefix}-training", curves, caption)] if curves else out


def _image_figures(
    prefix: str,
    models: NamedModels,
    store: Store,
    records: Sequence[EvaluationRecord],
    data_digest: str,
    load_images: LoadImages,
) -> tuple[list[PageFigure], list[str]]:
    """Plot the images that most models misclassify, and figures of methods. Notes say what is not available."""
    out: list[PageFigure] = []
    notes: list[str] = []
    try:
        panel = most_misclassified_images(store, records, data_digest, load_images)
    except ArtifactError as err:
        panel = f"no panel of attacked images: {err}"
    if isinstance(panel, AdversarialPanel):
        figure = figures.plot_adversarial_images(panel.images, panel.adv, panel.notes, panel.title)
        out.append(PageFigure(f"{prefix}-images", figure, "Clean, attacked, and the difference magnified around gray."))
    else:
        notes.append(panel)
    done: set[str] = set()
    for name, rows, folder in models:
        defense = str(rows.iloc[0]["defense"])
        if folder is None or defense in done:  # one model of a method is enough
            continue
        shown = method_panel(store, folder, load_images)
        if isinstance(shown, str):
            notes.append(shown)
        elif shown:
            done.add(defense)
            figure = figures.plot_image_rows(shown, f"{name} on the first test images")
            caption = f"From the stored stages of {name}: {', '.join(shown)}."
            out.append(PageFigure(f"{prefix}-method-{len(done)}", figure, caption))
    return out, list(dict.fromkeys(notes))


def _timing(store: Store, folder: str) -> dict[str, Any]:
    path = store.folder("model", folder) / "timing.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _stage_seconds(store: Store, folder: str) -> dict[str, float]:
    """Return seconds by stage. A required training counts as one stage 'from NAME'."""
    timing = _timing(store, folder)
    out: dict[str, float] = {}
    for required, seconds in timing.get("required", {}).items():
        name = f"from {required.split('-')[0]}"
        out[name] = out.get(name, 0.0) + (seconds or 0.0)
    for stage in timing.get("stages", []):
        out[stage["name"]] = stage["seconds"]
    return out


def _model_details(
    name: str, rows: pd.DataFrame, store: Store, repro: ReproCommands, folder: str | None
) -> ModelDetails:
    first, timing = rows.iloc[0], _timing(store, folder) if folder else {}
    same = ("weights_digest", "precision", "data_digest", "examples")
    raised = raised_by_examination(
        r for r in repro.records.get(folder or "", ()) if all(dict(r)[key] == first[key] for key in same)
    )
    return ModelDetails(
        name,
        {key.replace("_", " "): format_text(first[key]) for key in PROVENANCE},
        [
            f"{r.attack} v{r.attack_version}, {format_threat(r.threat_norm, r.threat_eps)}, {r.protocol}: "
            f"{r.attack_budget}, early stop {'yes' if r.early_stop else 'no'}"
            + (f", transfer source {r.source_digest}" if not pd.isna(r.source_digest) else "")
            for r in iter_rows(rows)
        ],
        repro.command(folder, examples=int(first["examples"])) if folder else "",
        [(flag, raised.get(flag) or parts.evidence(flag, rows, timing)) for flag in list_flags(rows)],
        _stage_table(timing["stages"]) if timing.get("stages") else None,
    )


def _stage_table(stages: list[dict[str, Any]]) -> Table:
    columns = {
        **{"time (s)": "seconds", "epochs": "epochs", "time per epoch (s)": "seconds_per_epoch"},
        **{"images/s": "images_per_second", "CPU time (s)": "cpu_seconds", "warm-up (s)": "warmup_seconds"},
    }
    lines = [
        [
            stage["name"],
            *(f"{stage[key]:.4g}" for key in columns.values()),
            f"{stage['peak_memory_bytes'] / 2**30:.2f}",
            ", ".join(f"{k} {v:.4g}" for k, v in (stage["passes"] or {}).items() if v) or "not declared",
        ]
        for stage in stages
    ]
    return Table("stages", ["stage", *columns, "peak memory (GiB)", "passes"], lines, left=("stage", "passes"))
