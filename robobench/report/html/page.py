"""The report: one HTML file that holds everything, needs no network, and says how to redo each row."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from robobench import __version__
from robobench.attack_engine.trace import TRACE_STEPS
from robobench.errors import ArtifactError
from robobench.planning.repro_command import ReproCommands
from robobench.report import figures as draw
from robobench.report.formatting import (
    BOARD,
    cells,
    flags_of,
    groups,
    labelled,
    percent,
    point,
    points,
    text,
    with_names,
)
from robobench.report.image_panels import Worst, images_at_hand, lost_most, of_method
from robobench.report.leaderboard import board_text, boards, rank_models
from robobench.report.matrix import PROTOCOLS, budgets, costs, matrix
from robobench.results.checks import raised_by_examination
from robobench.results.records import EvaluationRecord
from robobench.results.rows import TRANSFER_ONLY_IMAGES
from robobench.store.artifacts import WEIGHT_FILES, Store

HERE = Path(__file__).parent

Folders = dict[tuple[Any, ...], str]  # (defense, seed, digest of the weights) -> folder in the store

PROVENANCE = (
    *("defense", "defense_version", "model", "stem", "image_size", "interpolation", "dataset", "data_digest", "preset"),
    *("train_norm", "train_eps", "seed", "selection", "precision", "threads", "hardware", "torch_version", "commit"),
    *("config_digest", "weights_digest"),
)


@dataclass
class Table:
    """A table of text for the page: heading cells and lines; `left` columns hold words."""

    caption: str
    head: list[str]
    lines: list[list[str]]
    best: list[bool] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left: tuple[str, ...] = ("defense", "model", "flags")


@dataclass
class Picture:
    """A figure and the words beside it."""

    name: str
    figure: Figure
    words: str

    def svg(self) -> Markup:
        """Return the figure as a part of the page; matplotlib has escaped its texts."""
        return Markup(draw.svg(self.figure, self.name))


@dataclass
class Network:
    """What a reader needs to believe one network's rows and to make them again."""

    name: str
    values: dict[str, str]
    attacks: list[str]
    command: str
    flags: list[tuple[str, str]]
    stages: Table | None


@dataclass
class Section:
    """One data set and number of test images."""

    title: str
    tables: list[Table]
    matrices: list[Table]
    pictures: list[Picture]
    networks: list[Network]
    notes: list[str]


def sections(rows: pd.DataFrame, place: Path, data_dir: Path | None = None) -> list[Section]:
    """Lay out everything a store or a folder of rows holds; what it cannot give is left out with a note.

    Args:
        data_dir: where data sets are, for the pictures of images.
    """
    store = Store(place)
    redo = ReproCommands(place)
    folders: Folders = {}
    for name, config in redo.configs.items():
        files = store.manifest(store.folder("model", name))["files"]
        for file in WEIGHT_FILES.values():
            folders[config["defense"], config["seed"], files.get(file, "")[:16]] = name
    return [
        _section(part, number, store, redo, folders, data_dir) for number, part in enumerate(groups(rows, BOARD), 1)
    ]


def _section(
    rows: pd.DataFrame, number: int, store: Store, redo: ReproCommands, folders: Folders, data_dir: Path | None
) -> Section:
    rows = with_names(rows)
    first, lines, prefix = rows.iloc[0], rank_models(rows), f"f{number}"
    tables = []
    for title, part in boards(lines):
        shown = board_text(part)
        tables.append(Table(title, list(shown.columns), shown.to_numpy().tolist(), part["best"].tolist()))
    matrices = []
    for protocol, meaning in PROTOCOLS.items():
        part = rows[rows["protocol"] == protocol]
        if len(part):
            shown = matrix(part, protocol).reset_index()
            caption = f"{protocol} accuracy, %: {meaning}"
            matrices.append(Table(caption, list(shown.columns), shown.to_numpy().tolist(), notes=budgets(part)))
    shown = costs(rows).reset_index()
    matrices.append(Table("cost and flags", list(shown.columns), shown.to_numpy().tolist()))
    pictures = []
    for norm in dict.fromkeys(norm for norm, _ in points(rows)):
        some = _one_board_a_radius(lines[lines["threat_norm"] == norm])
        if len(some):
            words = (
                "Solid: white-box worst case, an upper bound of robustness. Dotted: transfer. eps 0 is clean accuracy."
            )
            pictures.append(Picture(f"{prefix}-eps-{norm}", draw.accuracy_curve(some, norm), words))
            at = some[some["threat_eps"] == some["threat_eps"].max()]
            if at["total_train_seconds"].notna().any():
                words = (
                    f"{point(norm, at['threat_eps'].iloc[0])}, bars are 95 % intervals. The cost is that of every "
                    "stage that had to run; seconds compare only within one hardware."
                )
                pictures.append(Picture(f"{prefix}-cost-{norm}", draw.cost_scatter(at), words))
    notes = [
        f"no figure: {r.defense} under {r.attack} ({r.protocol}): {r.reason}"
        for r in rows[rows["status"] != "ok"].itertuples()
    ]
    records = [record for cells in redo.records.values() for record in cells]
    pictures += _progress(prefix, rows, records)
    identity = ["defense", "seed", "weights_digest"]
    named: Named = [(name, part, folders.get(tuple(part.iloc[0][identity]))) for name, part in labelled(rows)]
    stages = {name: _stage_seconds(store, folder) for name, _, folder in named if folder}
    if any(stages.values()):
        bars = draw.stage_bars({name: parts for name, parts in stages.items() if parts})
        words = "Every stage that had to run; 'from NAME' is another training that this one required."
        pictures.append(Picture(f"{prefix}-stages", bars, words))
    more, why = _images(prefix, named, store, records, str(first["data_digest"]), data_dir)
    pictures += more
    notes += why
    networks = [_network(name, part, store, redo, folder) for name, part, folder in named]
    title = f"{first['dataset']}, {', '.join(sorted(set(rows['model'])))}, {first['examples']} test images"
    return Section(title, tables, matrices, pictures, networks, notes)


def _progress(prefix: str, rows: pd.DataFrame, records: Sequence[EvaluationRecord]) -> list[Picture]:
    """Draw how the attack with most networks (then most steps) went at the smallest radius of each norm."""
    ours = {(r.weights_digest, r.examples, r.data_digest) for r in rows.itertuples()}
    said = [r for r in records if (r["weights_digest"], r["examples"], r["data_digest"]) in ours and r.get("traces")]
    names = {part.iloc[0]["weights_digest"]: name for name, part in labelled(rows)}
    pictures = []
    for norm in dict.fromkeys(r["threat_norm"] for r in sorted(said, key=lambda r: r["threat_norm"] != "Linf")):
        eps = min(r["threat_eps"] for r in said if r["threat_norm"] == norm)
        here: dict[str, dict[str, list[float]]] = {}
        for r in said:
            if (r["threat_norm"], r["threat_eps"]) == (norm, eps) and r["attack"] in r["traces"] and r["steps"] != 1:
                left = [100 * (1 - rate) for rate in r["traces"][r["attack"]]["success_rate"]]
                here.setdefault(r["attack"], {})[names[r["weights_digest"]]] = left
        if here:
            attack = max(here, key=lambda name: (len(here[name]), max(map(len, here[name].values())), name))
            words = "A curve that still falls at its end says that more steps would find more."
            figure = draw.progress(here[attack], TRACE_STEPS, f"{attack} at {point(norm, eps)}, look by look")
            pictures.append(Picture(f"{prefix}-progress-{norm}", figure, words))
    return pictures


Named = list[tuple[str, pd.DataFrame, str | None]]  # a network's name in tables, its rows, its folder


def _images(
    prefix: str,
    named: Named,
    store: Store,
    records: Sequence[EvaluationRecord],
    data_digest: str,
    data_dir: Path | None,
) -> tuple[list[Picture], list[str]]:
    """Draw the images most networks lose, and what each method shows of its own; say why where that cannot be."""
    look = functools.cache(lambda: images_at_hand(store, data_digest, data_dir))
    pictures: list[Picture] = []
    notes: list[str] = []
    try:
        worst = lost_most(store, records, data_digest, look)
    except ArtifactError as err:
        worst = f"no pictures: {err}"
    if isinstance(worst, Worst):
        figure = draw.worst_images(worst.images, worst.adv, worst.notes, worst.title)
        words = "Clean, attacked, and the difference magnified around gray."
        pictures.append(Picture(f"{prefix}-images", figure, words))
    else:
        notes.append(worst)
    done: set[str] = set()
    for name, rows, folder in named:
        defense = str(rows.iloc[0]["defense"])
        if folder is None or defense in done:  # one network of a method is enough
            continue
        shown = of_method(store, folder, look)
        if isinstance(shown, str):
            notes.append(shown)
        elif shown:
            done.add(defense)
            figure = draw.picture_rows(shown, f"What {name} makes of the first test images")
            words = f"From what the stages of {name} left: {', '.join(shown)}."
            pictures.append(Picture(f"{prefix}-method-{len(done)}", figure, words))
    return pictures, list(dict.fromkeys(notes))


def _one_board_a_radius(lines: pd.DataFrame) -> pd.DataFrame:
    """Keep of each radius the board with most networks: only its lines may share a figure."""
    kept = [max(parts, key=len) for parts in _by_radius(lines)]
    return pd.concat(kept) if kept else lines


def _by_radius(lines: pd.DataFrame) -> list[list[pd.DataFrame]]:
    return [[part for _, part in boards(at)] for at in groups(lines, ["threat_eps"])]


def _timing(store: Store, folder: str) -> dict[str, Any]:
    path = store.folder("model", folder) / "timing.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _stage_seconds(store: Store, folder: str) -> dict[str, float]:
    timing = _timing(store, folder)
    parts: dict[str, float] = {}
    for other, seconds in timing.get("required", {}).items():
        name = f"from {other.split('-')[0]}"
        parts[name] = parts.get(name, 0.0) + (seconds or 0.0)
    for stage in timing.get("stages", []):
        parts[stage["name"]] = stage["seconds"]
    return parts


def _network(name: str, rows: pd.DataFrame, store: Store, redo: ReproCommands, folder: str | None) -> Network:
    first, timing = rows.iloc[0], _timing(store, folder) if folder else {}
    alike = ("weights_digest", "precision", "data_digest", "examples")
    raised = raised_by_examination(
        r for r in redo.records.get(folder or "", ()) if all(dict(r)[key] == first[key] for key in alike)
    )
    stages = None
    if timing.get("stages"):
        head = ["stage", "seconds", "epochs", "s an epoch", "images/s", "CPU s", "warm-up s", "peak GiB", "passes"]
        lines = [
            [
                s["name"],
                *(f"{s[k]:.4g}" for k in ("seconds", "epochs", "seconds_per_epoch", "images_per_second")),
                *(f"{s[k]:.4g}" for k in ("cpu_seconds", "warmup_seconds")),
                f"{s['peak_memory_bytes'] / 2**30:.2f}",
                ", ".join(f"{k} {v:.4g}" for k, v in (s["passes"] or {}).items() if v) or "not declared",
            ]
            for s in timing["stages"]
        ]
        stages = Table("stages", head, lines, left=("stage", "passes"))
    attacks = rows[
        [
            "attack",
            "attack_version",
            "threat_norm",
            "threat_eps",
            "protocol",
            "early_stop",
            "attack_budget",
            "source_digest",
        ]
    ]
    return Network(
        name,
        {key.replace("_", " "): text(first[key]) for key in PROVENANCE},
        [
            f"{r.attack} v{r.attack_version}, {point(r.threat_norm, r.threat_eps)}, {r.protocol}: "
            f"{r.attack_budget}, early stop {'yes' if r.early_stop else 'no'}"
            + (f", source {r.source_digest}" if not pd.isna(r.source_digest) else "")
            for r in cells(attacks)
        ],
        redo.command(folder, examples=int(first["examples"])) if folder else "",
        [(flag, raised.get(flag) or evidence(flag, rows, timing)) for flag in flags_of(rows)],
        stages,
    )


def evidence(flag: str, rows: pd.DataFrame, timing: dict[str, Any]) -> str:
    """Say in figures why a network carries a flag: the stage that raised it, or the accuracies of its rows."""
    for stage in timing.get("stages", []):
        if flag in stage.get("flags", []):
            figures = ", ".join(f"{name} {value:.4g}" for name, value in stage["metrics"].items())
            return f"raised by stage '{stage['name']}': {figures or 'no figures kept'}"
    flagged = rows[rows["flags"].fillna("").astype(str).str.split(",").map(lambda flags: flag in flags)]
    said = []
    for norm, eps in points(flagged):
        at = flagged[(flagged["threat_norm"] == norm) & (flagged["threat_eps"] == eps)]
        worst = at.drop_duplicates("protocol").set_index("protocol")["worst_case_accuracy"]
        figures = ", ".join(f"{protocol} {percent(value)} %" for protocol, value in worst.items())
        said.append(f"{point(norm, eps)}: clean {percent(at['clean_accuracy'].max())} %, {figures}")
    rule = (
        f"; the rule: {TRANSFER_ONLY_IMAGES} images or more, white-box at most a tenth of clean, transfer at least half"
        if flag == "transfer-only"
        else ""
    )
    return "; ".join(said) + rule


def html(parts: list[Section], title: str) -> str:
    """Write the page; every name in it is escaped."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html").render(
        title=title,
        sections=parts,
        version=__version__,
        made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        style=Markup((HERE / "page.css").read_text()),  # our own files
        script=Markup((HERE / "page.js").read_text()),
    )


def pictures_of(parts: list[Section]) -> dict[str, Figure]:
    """Return every figure of the page by name."""
    return {picture.name: picture.figure for part in parts for picture in part.pictures}
