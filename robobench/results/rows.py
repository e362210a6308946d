"""Rows of tables, made from the records of a store. rows.csv is always rewritten from the records.

A row is one model under one attack at one radius and protocol. Accuracies are fractions over all test images.
"""

from __future__ import annotations

import functools
import importlib.util
import io
import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from filelock import FileLock

from robobench.core.numbers import canonical_eps
from robobench.errors import ArtifactError, RequestError
from robobench.results.checks import check_records, min_count, raised_by_examination
from robobench.results.confidence_sequence import confidence_sequence
from robobench.results.index import join_rows, load_index, plain_types, save_index, scan
from robobench.results.records import EvaluationRecord, TrainingTiming
from robobench.results.statistics import (
    PerImageOutcomes,
    clean_outcomes_of,
    combine_worst_case,
    failed_attacks,
    outcomes_of,
)
from robobench.store.artifacts import Store, wrap_write_errors, write_atomic

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = [
    *("dataset", "data_digest", "model", "image_size", "preset", "config_digest"),
    *("defense", "defense_version", "train_norm", "train_eps", "attack", "attack_version"),
    *("threat_norm", "threat_eps", "relative_step", "early_stop", "attack_budget", "protocol", "source_digest"),
    *("seed", "selection", "examples", "clean_accuracy", "robust_accuracy", "ci_low", "ci_high"),
    *("train_seconds", "total_train_seconds", "warmup_seconds", "peak_memory_bytes", "precision", "threads"),
    *("hardware", "torch_version", "commit", "flags", "status", "reason"),
    *("stem", "interpolation", "weights_digest", "is_control"),
    # over all attacks on this model at this (norm, eps) and protocol, image by image; empty if one of them failed:
    *("worst_case_accuracy", "worst_case_ci_low", "worst_case_ci_high", "worst_case_attacks"),
    *("train_forwards", "total_train_forwards", "passes"),  # training cost in forward passes, where declared
    *("train_cpu_seconds", "total_train_cpu_seconds"),
    *("compiled", "stage_memory", "budget_reduced", "budget_standard", "search_precision"),
    *("resolution", "forward_flops", "train_flops", "total_train_flops", "extra", "verdict"),
]
# Missing in older tables, from some column on.
OPTIONAL_COLUMNS = [
    *("stage_memory", "resolution", "forward_flops", "train_flops", "total_train_flops", "extra", "verdict")
]
COST_COLUMNS = [
    *("train_seconds", "total_train_seconds", "warmup_seconds", "peak_memory_bytes"),
    *("train_forwards", "total_train_forwards", "train_cpu_seconds", "total_train_cpu_seconds"),
    *("forward_flops", "train_flops", "total_train_flops", "extra"),
]
DIGESTS = ["data_digest", "config_digest", "source_digest", "weights_digest", "commit"]  # text, even "1234"
TRANSFER_ONLY_IMAGES = 200
MODEL_KEYS = ("training", "selection", "weights_digest", "precision", "data_digest", "examples", "verdict")
FORWARDS_OF = {"weight_grad": 2.0}  # forward passes that a pass costs, 1 for any other
PASS_SIGNS = {
    "forward": "F",
    "input_grad": "Gx",
    "weight_grad": "Gw",
    "teacher_forward": "TF",
    "teacher_input_grad": "TGx",
}


def read_records(root: Path, repair: Store | None = None, only: Iterable[str] | None = None) -> list[EvaluationRecord]:
    """Read every evaluation record of a store, with its training's timing, in a stable order.

    Args:
        repair: quarantine damaged records in this store and leave them out, as during a run.
        only: keys to read, all records of a training or none; default: all.

    Raises:
        ArtifactError: a record is damaged. Leaving it out could raise a worst-case accuracy.
    """
    store, out = Store(root), list[EvaluationRecord]()

    def read(kind: str, name: str, file: str) -> Any:
        folder = store.folder(kind, name)
        if not folder.exists():
            return None
        try:
            store.verify(folder, file)
            return json.loads((folder / file).read_text())
        except ArtifactError as err:
            if repair is None:
                raise ArtifactError(f"{err}; rerun its command, which recomputes it") from None
            store.log = repair.log
            store.find(kind, name, file)
            return None

    @functools.cache
    def timing(name: str) -> TrainingTiming:
        found: dict[str, Any] = read("model", name, "timing.json") or {}
        for what, sum_of in (("forwards", count_forwards), ("flops", count_flops), ("cpu_seconds", sum_cpu_seconds)):
            parts = [sum_of(found), *(sum_of(timing(other)) for other in found.get("required", {}))]
            found[f"train_{what}"] = parts[0]
            found[f"total_train_{what}"] = None if None in parts else sum(part for part in parts if part is not None)
        return cast(TrainingTiming, found)

    names = (folder.name for folder in store.iter_artifacts("evaluations")) if only is None else sorted(only)
    for name in names:
        record = read("evaluations", name, "record.json")
        if record is not None:
            more = {"timing": timing(record["training"]), "threat_eps": canonical_eps(record["threat_eps"])}
            out.append(cast(EvaluationRecord, {**record, **more}))
    requested = {r["training"] for r in out if not r["is_control"]}  # another run may evaluate a baseline by itself
    for r in out:
        r["is_control"] = r["is_control"] and r["training"] not in requested
    out.sort(key=_order)
    return out


def _order(r: EvaluationRecord) -> str:
    """Return a text that sorts records."""
    texts = (r["dataset"], r["model"], r["defense"], r["seed"], r["protocol"], r["attack"], r["threat_norm"])
    own = (r["training"], r["selection"], f"{r['examples']:012d}", r["attack_budget"], r["search_precision"])
    return "\0".join(map(str, (*texts, r["threat_eps"], *own, r.get("key", ""))))


def count_forwards(timing: Any) -> float | None:
    """Sum the passes that the stages of a training declare, in forward passes; None if a stage declares none.

    An input gradient counts as one forward pass, a weight gradient as two. A teacher's pass counts like one of the
    student, whatever the teacher's size.
    """
    stages = timing.get("stages") or []
    if not stages or any(stage.get("passes") is None for stage in stages):
        return None
    return float(sum(s["images"] * sum(FORWARDS_OF.get(k, 1.0) * v for k, v in s["passes"].items()) for s in stages))


def count_flops(timing: Any) -> float | None:
    """Return the FLOPs of a training's declared passes; None if passes or the model's FLOPs are unknown."""
    forwards, flops = count_forwards(timing), timing.get("forward_flops")
    return None if forwards is None or flops is None else forwards * flops


def sum_cpu_seconds(timing: Any) -> float | None:
    """Sum the CPU time of a training's stages; None if there are none (an external model)."""
    stages = timing.get("stages") or []
    return float(sum(stage["cpu_seconds"] for stage in stages)) if stages else None


def matching_records(group: list[EvaluationRecord], record: EvaluationRecord, protocol: str) -> list[EvaluationRecord]:
    """Return the records of a model at a record's (norm, eps) under a protocol.

    They share one transfer source: the record's own, else that of the first record.
    """
    at = (record["threat_norm"], record["threat_eps"])
    same = [r for r in group if (r["threat_norm"], r["threat_eps"]) == at and r["protocol"] == protocol]
    first = next((r for r in same if r["status"] == "ok"), *same[:1]) if same else None
    source = (record if record["protocol"] == protocol else first or record)["source_digest"]
    return [r for r in same if r["source_digest"] == source]


def worst_case(group: list[EvaluationRecord], record: EvaluationRecord, protocol: str) -> PerImageOutcomes | None:
    """Combine the attacks on one model at a record's (norm, eps): an image counts if it survives all of them.

    None if an attack of this (norm, eps) and protocol gave no result. Transfer examples lie in the same ball: where
    they find images that the white-box attacks miss (check "transfer-stronger"), these images are lost white-box too.
    """
    worst = combine_worst_case(matching_records(group, record, protocol))
    if worst is None or protocol != "white-box":
        return worst
    at = (record["threat_norm"], record["threat_eps"], "transfer", "ok")
    transfer = [r for r in group if (r["threat_norm"], r["threat_eps"], r["protocol"], r["status"]) == at]
    known = combine_worst_case(transfer)
    refuted = known is not None and worst.count_lost_in(known) >= min_count(worst.size)
    return worst & known if known is not None and refuted else worst


def transfer_only(
    clean: PerImageOutcomes, white_box: PerImageOutcomes | None, transfer: PerImageOutcomes | None
) -> bool:
    """Return whether a model is robust under transfer only.

    On 200 images or more: the white-box worst case is at most a tenth of clean accuracy, and transfer accuracy is at
    least half of it.
    """
    if white_box is None or transfer is None or white_box.size < TRANSFER_ONLY_IMAGES:
        return False
    return white_box.accuracy <= 0.1 * clean.accuracy and transfer.accuracy >= 0.5 * clean.accuracy


def make_rows(group: list[EvaluationRecord]) -> list[dict[str, Any]]:
    """Return one row per record, for the records of one model on one set of images."""
    rows = []
    for record in group:
        timing: dict[str, Any] = dict(record.get("timing", {}))
        values: dict[str, Any] = dict(record)
        row = {name: values.get(name) for name in COLUMNS}
        row |= {name: timing.get(name) for name in COST_COLUMNS}
        row["passes"], row["stage_memory"] = format_passes(timing), format_stage_memory(timing)
        source_flags = [f["flag"] for f in record.get("source_findings", []) if f["raised"]]
        flags = [*timing.get("flags", []), *raised_by_examination(group), *source_flags]
        if record["status"] == "ok":
            clean, outcomes = clean_outcomes_of(record), outcomes_of(record)
            worst = worst_case(group, record, record["protocol"])
            row["clean_accuracy"], row["robust_accuracy"] = clean.accuracy, outcomes.accuracy
            row["ci_low"], row["ci_high"] = _interval(outcomes, record)
            if worst is None:
                failed = failed_attacks(matching_records(group, record, record["protocol"]))
                row["reason"] = "no worst case: " + "; ".join(f"{name}: {why}" for name, why in failed.items())
            else:
                row["worst_case_accuracy"] = worst.accuracy
                row["worst_case_ci_low"], row["worst_case_ci_high"] = _interval(worst, record)
            if transfer_only(clean, *(worst_case(group, record, p) for p in ("white-box", "transfer"))):
                flags.append("transfer-only")
            flags += [
                f.check.name for f in check_records(group, record["threat_norm"], record["threat_eps"]) if f.raised
            ]
        same = matching_records(group, record, record["protocol"])
        row["worst_case_attacks"] = ",".join(sorted({r["attack"] for r in same}))
        row["flags"] = ",".join(dict.fromkeys(flags))
        rows.append(row)
    return rows


def _interval(outcomes: PerImageOutcomes, record: EvaluationRecord) -> tuple[float, float]:
    """Return the 95 % interval: Wilson's, or the confidence sequence if --until chose the number of images."""
    if "population" in record:
        return confidence_sequence(outcomes.count, outcomes.size, record["population"])
    return outcomes.interval


def format_passes(timing: dict[str, Any]) -> str:
    """Format the declared passes per image and epoch by stage: F forward, Gx input gradient, Gw weight gradient.

    T marks passes of teachers.
    """
    out = []
    for stage in timing.get("stages", []):
        passes = stage["passes"]
        if passes:
            terms = " + ".join(f"{passes[k]:.4g} {sign}" for k, sign in PASS_SIGNS.items() if passes[k])
            out.append(f"{stage['name']} {stage['epochs']} x ({terms})")
    return "; ".join(out)


def format_stage_memory(timing: dict[str, Any]) -> str:
    """Format the peak memory of a training by stage."""
    return "; ".join(f"{s['name']} {s['peak_memory_bytes'] / 2**20:.0f} MiB" for s in timing.get("stages", []))


def group_by_model(records: list[EvaluationRecord]) -> dict[tuple[Any, ...], list[EvaluationRecord]]:
    """Group records by trained model, selected epoch, test images and verdict, in their order.

    A model that was retrained under the same name, as by `--overwrite`, is another model if its weights differ.
    """
    groups: dict[tuple[Any, ...], list[EvaluationRecord]] = {}
    for record in records:
        values: dict[str, Any] = dict(record)
        groups.setdefault(tuple(values.get(name) for name in MODEL_KEYS), []).append(record)
    return groups


def make_frame(records: list[EvaluationRecord]) -> pd.DataFrame:
    """Return the rows of records as a DataFrame."""
    import pandas as pd

    rows = [row for group in group_by_model(records).values() for row in make_rows(group)]
    return pd.DataFrame(rows, columns=COLUMNS)


def rewrite_rows(store: Store, keys: Collection[str] = ()) -> list[EvaluationRecord]:
    """Rewrite rows.csv from the records, atomically and one process at a time; return the records of some keys.

    Raises:
        StorageError: it cannot be written; the old one is unchanged.
    """
    root = store.root
    with wrap_write_errors(root / "rows.csv"), FileLock(root / ".rows.lock"):
        for file in root.glob(".rows.csv.*"):  # of a process that died while writing
            file.unlink(missing_ok=True)
        rows = _all_rows(root, [*COLUMNS, "_key", "_training"], repair=store)
        write_atomic(root / "rows.csv", rows[COLUMNS].to_csv(index=False))
    trainings = set(rows.loc[rows["_key"].isin(keys), "_training"])
    needed = rows.loc[rows["_training"].isin(trainings), "_key"]
    return [record for record in read_records(root, repair=store, only=needed) if record["key"] in keys]


def _all_rows(root: Path, columns: list[str], repair: Store | None = None) -> pd.DataFrame:
    """Return columns of the rows of a store. Only trainings that the index lacks are read.

    Args:
        columns: of COLUMNS and of the index.
        repair: as in `read_records`.

    Raises:
        ArtifactError: a record is damaged.
    """
    states, index = scan(root), load_index(root)
    if index is None:
        rows = _rows_with_origin(read_records(root, repair))
    elif index.states == states:
        return index.rows(columns)
    else:
        was, rows = index.states, index.rows()
        new = {key for key, state in states.records.items() if was.records.get(key) != state}
        gone = was.records.keys() - states.records.keys()
        models = {name for name in states.models.keys() | was.models if states.models.get(name) != was.models.get(name)}
        trainings = set(rows.loc[rows["_key"].isin(new | gone), "_training"])
        trainings |= {record["training"] for record in read_records(root, repair, only=new)}
        uses = rows["_depends_on"].str.split("\0").map(models.isdisjoint)
        affected = rows["_training"].isin(trainings) | ~uses
        again = new | set(rows.loc[affected, "_key"]) - gone
        fresh = _rows_with_origin(read_records(root, repair, only=again))
        rows = join_rows(rows[~affected], fresh)
        first = rows.groupby("_group")["_order"].transform("min")
        rows = rows.assign(_first=first).sort_values(["_first", "_order"], kind="stable").drop(columns="_first")
        rows = plain_types(rows.reset_index(drop=True))
    # Files that changed while they were read are read again the next time, since `states` is older.
    save_index(root, rows, states)
    return rows[columns]


def _rows_with_origin(records: list[EvaluationRecord]) -> pd.DataFrame:
    """Return rows as they are read from rows.csv, with the columns of the index."""
    groups = group_by_model(records)
    rows = parse_rows(io.StringIO(make_frame(records).to_csv(index=False)))
    ordered = [(record, str(key)) for key, group in groups.items() for record in group]
    depends = [[r["training"], *r["timing"].get("required", {})] for r, _ in ordered]
    origin = {
        "_key": [r["key"] for r, _ in ordered],
        "_training": [r["training"] for r, _ in ordered],
        "_depends_on": ["\0".join(names) for names in depends],
        "_order": [_order(r) for r, _ in ordered],
        "_group": [group for _, group in ordered],
    }
    return rows.assign(**origin)


def parse_rows(table: Any) -> pd.DataFrame:
    """Read a table of rows, a file or a text stream; raises ValueError."""
    import pandas as pd

    return plain_types(pd.read_csv(table, dtype=dict.fromkeys(DIGESTS, str), keep_default_na=True))


def read_rows(place: Path, more: Collection[str] = ()) -> pd.DataFrame:
    """Read the rows of a store from its records, or the rows.csv of a folder without records.

    Args:
        more: columns of the index to add, where there are records.

    Raises:
        RequestError: there are no rows, or rows.csv is not a table of rows.
        ArtifactError: a record of the store is damaged.
    """
    file, found = place / "rows.csv", _all_rows(place, [*COLUMNS, *more])
    if not found.empty:
        return found
    if not file.is_file():
        raise RequestError(
            f"no rows in '{place}' (no rows.csv); run 'robobench run' or 'robobench compare' first, "
            "or name another store with --out"
        )
    try:
        rows = parse_rows(file)
    except (ValueError, UnicodeDecodeError) as err:
        raise RequestError(f"'{file}' is not a table of rows: {' '.join(str(err).split())}") from None
    missing = [name for name in COLUMNS if name not in [*rows.columns, *OPTIONAL_COLUMNS]]
    if missing:
        raise RequestError(f"'{file}' is not a table of rows: it lacks {', '.join(missing[:3])}")
    return rows


def damaged_records(place: Path) -> list[str]:
    """Return the keys of records that were damaged, quarantined, and not computed again."""
    folder = place / "artifacts" / "evaluations"
    keys = {file.name.partition(".damaged-")[0] for file in folder.glob("*.damaged-*")}
    return sorted(key for key in keys if not (folder / key).is_dir())


def bundled_boards() -> list[Path]:
    """Return the folders of the leaderboards that ship with robobench."""
    found = importlib.util.find_spec("robobench.leaderboards")
    assert found is not None and found.submodule_search_locations
    place = Path(next(iter(found.submodule_search_locations)))
    return sorted(file.parent for file in place.glob("[!.]*/rows.csv"))  # dot folders: an aborted `write_snapshot`
