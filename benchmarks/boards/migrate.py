"""Migrate a store or a board in place from the record format of 2026-11 to the current one. No figure changes.

    python benchmarks/boards/migrate.py FOLDER [FOLDER ...]

Names of folders and keys of artifacts are kept; keys, values and digests inside them are rewritten. rows.csv and
matrix.csv are made again from the records, and compared with the old tables column by column. A board without records
has its rows.csv migrated directly. A second run changes nothing. No other run may use the store meanwhile. Unfinished
work (checkpoints, partial evaluations) is not migrated. Exit status 1 if a table differs or an artifact is damaged.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robobench.errors import ArtifactError, RequestError
from robobench.plugins.discovery import load_attack
from robobench.report.board_folder import matrix_csv
from robobench.results.rows import COLUMNS, OPTIONAL_COLUMNS, make_frame, read_records, read_rows
from robobench.store.artifacts import MANIFEST, Store, write_atomic

BF16_SUFFIX = ", bfloat16 search"  # of a budget
TIMING_KEYS = {
    f"{old}_{what}": f"{new}_{what}"
    for old, new in (("own", "train"), ("whole", "total_train"))
    for what in ("seconds", "forwards", "cpu_seconds")
}
RECORD_KEYS = {"control": "is_control", "curves": "traces"}
RECIPE_KEYS = {"chunk": "eval_batch_size", "source": "transfer_source"}
TRAIN_FIELDS = {"eps_warmup": "eps_rampup", "attack_bn": "attack_bn_mode"}  # config fields of every defense
PLUGIN_FIELDS = {
    "iad": {"b": "beta", "gate": "introspection_start"},
    "adaad": {"b": "beta", "gate": "introspection_start"},
    "mtard": {"b": "beta"},
    "rocl": {"gray": "grayscale_prob", "mirror": "hflip", "crop_area": "min_crop_area"},
    "fab-t": {"lean": "alpha_max", "back": "beta"},
    "square": {"area": "p_init", "rescale": "rescale_schedule"},
    "noise": {"draws": "samples"},
}
Json = dict[str, Any]


def rename(values: Json, names: Mapping[str, str]) -> Json:
    """Rename keys; their order is kept."""
    return {names.get(key, key): value for key, value in values.items()}


def migrate_config(config: Json, defense: str) -> Json:
    """Rename the config fields of a defense."""
    return rename(config, TRAIN_FIELDS | PLUGIN_FIELDS.get(defense, {}))


def migrate_flags(flags: list[str]) -> list[str]:
    """Rename the flags of a training."""
    return [re.sub(r"^batch-cut-", "grad-accumulation-", flag) for flag in flags]


def migrate_stage(stage: Json) -> Json:
    """Migrate the record of one stage of a training."""
    return {**stage, "flags": migrate_flags(stage["flags"])}


def migrate_timing(timing: Json) -> Json:
    """Migrate a model's timing.json."""
    stages = [migrate_stage(stage) for stage in timing["stages"]]
    return {**rename(timing, TIMING_KEYS), "stages": stages, "flags": migrate_flags(timing["flags"])}


def migrate_model_config(config: Json) -> Json:
    """Migrate a model's config.json."""
    if config["defense"].startswith("external:"):
        return {**config, "config": {}}
    return {**config, "config": migrate_config(config["config"], config["defense"])}


def stops_early(attack: str, stop: str) -> bool:
    """Return whether an image left the attack at its first success.

    "library" was the value of attacks whose own code decides. Their classes now say what that code does.
    """
    if stop in ("first", "never"):
        return stop == "first"
    try:
        return bool(load_attack(attack.partition(":")[0]).early_stop)
    except RequestError:  # a plug-in that is not installed here
        return False


def split_budget(attack: str, budget: str) -> Json:
    """Return the values that replace the text of a budget."""
    text = budget.removesuffix(BF16_SUFFIX)
    for old, new in PLUGIN_FIELDS.get(attack, {}).items():
        text = re.sub(rf"\b{old}=", f"{new}=", text)
    return {
        "attack_budget": text,
        "budget_reduced": text.startswith("reduced"),
        "budget_standard": text == "standard",
        "search_precision": "bf16" if budget.endswith(BF16_SUFFIX) else "fp32",
    }


def migrate_record(record: Json) -> Json:
    """Migrate the record.json of an evaluation."""
    if "stop" not in record:
        return record
    out: Json = {}
    for key, value in rename(record, RECORD_KEYS).items():
        if key == "stop":
            out["early_stop"] = stops_early(record["attack"], value)
        elif key == "budget":
            out |= split_budget(record["attack"], value)
        elif key == "traces":
            out[key] = {attack: rename(trace, {"fallen": "success_rate"}) for attack, trace in value.items()}
        else:
            out[key] = value
    return out


def migrate_training_recipe(recipe: Json) -> Json:
    """Migrate the recipe of a model. One that was trained elsewhere has no config."""
    if "config" not in recipe:
        return recipe
    return {**recipe, "config": migrate_config(recipe["config"], recipe["defense"])}


def migrate_recipe(kind: str, recipe: Json) -> Json:
    """Migrate the recipe in an artifact's manifest."""
    if kind == "model":
        return migrate_training_recipe(recipe)
    if kind == "stages":
        return {**recipe, "training": migrate_training_recipe(recipe["training"])}
    out = rename(recipe, RECIPE_KEYS)
    if out.pop("stop", None) == "never":  # of ensembles, whose older transfer examples were stopped early
        out["early_stop"] = False
    attack = out["attack"]
    out["attack"] = {**attack, "config": rename(attack["config"], PLUGIN_FIELDS.get(attack["attack"], {}))}
    return out


def migrate_stage_file(stored: Json) -> Json:
    """Migrate the record.json of a stored stage."""
    return {**stored, "record": migrate_stage(stored["record"])}


FILES = {
    ("model", "config.json"): migrate_model_config,
    ("model", "timing.json"): migrate_timing,
    ("evaluations", "record.json"): migrate_record,
    ("stages", "record.json"): migrate_stage_file,
}


def migrate_artifact(store: Store, kind: str, folder: Path) -> bool:
    """Replace an artifact by its migrated form in one step; return whether anything changed.

    Raises:
        ArtifactError: it does not match its digests.
    """
    store.verify(folder)
    manifest = store.manifest(folder)
    recipe = migrate_recipe(kind, manifest["recipe"])
    texts = {}
    for name in manifest["files"]:
        if (kind, name) in FILES:
            old = (folder / name).read_text()
            new = json.dumps(FILES[kind, name](json.loads(old)), indent=1 if "\n" in old else None)
            if new != old:
                texts[name] = new
    if recipe == manifest["recipe"] and not texts:
        return False
    with store.create(kind, folder.name, recipe) as work:
        for file in folder.iterdir():
            if file.name in texts:
                (work / file.name).write_text(texts[file.name])
            elif file.name != MANIFEST:
                shutil.copy2(file, work / file.name)
    return True


def migrate_row(row: Json) -> Json:
    """Migrate a line of rows.csv, all values being text."""
    if "stop" not in row:
        return row
    out = rename(row, TIMING_KEYS | RECORD_KEYS)
    out["early_stop"] = str(stops_early(row["attack"], out.pop("stop")))
    out |= {name: str(value) for name, value in split_budget(row["attack"], out.pop("budget")).items()}
    out["flags"] = ",".join(migrate_flags(row["flags"].split(",")))
    return out


def read_csv(text: str) -> list[Json]:
    """Read a table as text."""
    return list(csv.DictReader(io.StringIO(text)))


def write_csv(rows: list[Json]) -> str:
    """Write migrated lines of rows.csv, in the current order of columns."""
    out = io.StringIO()
    columns = [name for name in COLUMNS if name in rows[0] or name not in OPTIONAL_COLUMNS]
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def compare_rows(old: list[Json], new: list[Json]) -> list[str]:
    """Return a line for every column of the old table that differs in the new one, in whatever order the rows are."""
    expected = [migrate_row(row) for row in old]
    if len(expected) != len(new):
        return [f"{len(expected)} rows before, {len(new)} now"]
    columns = [name for name in expected[0] if name in new[0]]
    gone = [f"column '{name}' is gone" for name in expected[0] if name not in new[0]]
    tables = [sorted([row[name] for name in columns] for row in rows) for rows in (expected, new)]
    wrong = [sum(a[n] != b[n] for a, b in zip(*tables, strict=True)) for n in range(len(columns))]
    return gone + [f"column '{name}': {count} rows differ" for name, count in zip(columns, wrong, strict=True) if count]


def compare_matrices(old: list[Json], new: list[Json]) -> list[str]:
    """Return what differs between two matrices by position: headings may have new words."""
    before, now = ([list(row.values()) for row in rows] for rows in (old, new))
    return [f"line {n}: {b} -> {a}" for n, (b, a) in enumerate(zip(before, now, strict=True), 2) if b != a]


def migrate_tables(folder: Path) -> list[str]:
    """Write rows.csv and matrix.csv in the current format; return what differs from the old tables.

    Raises:
        RequestError: there are no rows.
        ArtifactError: a record is damaged.
    """
    files = {name: folder / name for name in ("rows.csv", "matrix.csv")}
    old = {name: read_csv(file.read_text()) for name, file in files.items() if file.is_file()}
    records = read_records(folder)
    if records:
        write_atomic(files["rows.csv"], make_frame(records).to_csv(index=False))
    elif "rows.csv" in old:
        write_atomic(files["rows.csv"], write_csv([migrate_row(row) for row in old["rows.csv"]]))
    if "matrix.csv" in old:
        write_atomic(files["matrix.csv"], matrix_csv(read_rows(folder)))
    wrong = []
    for name, compare in (("rows.csv", compare_rows), ("matrix.csv", compare_matrices)):
        if name in old:
            new = read_csv(files[name].read_text())
            lines = compare(old[name], new)
            wrong += [f"{name}: {line}" for line in lines]
            result = f"{len(lines)} DIFFERENCES" if lines else "all figures equal"
            print(f"{folder / name}: {len(new)} rows, {len(new[0])} columns ({len(old[name][0])} before): {result}")
    return wrong


def migrate(folder: Path) -> list[str]:
    """Migrate a store or a board; return what differs in its tables.

    Raises:
        RequestError: there are no rows.
        ArtifactError: an artifact is damaged.
    """
    store = Store(folder)
    for kind in ("model", "stages", "transfer", "evaluations"):
        changed = [migrate_artifact(store, kind, artifact) for artifact in list(store.iter_artifacts(kind))]
        print(f"{folder}: {sum(changed)} of {len(changed)} artifacts of kind '{kind}' rewritten")
    return migrate_tables(folder)


def main() -> int:
    """Migrate the folders of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="+", help="a store, or a folder of leaderboards/")
    wrong = []
    for folder in parser.parse_args().folder:
        try:
            wrong += migrate(folder)
        except (ArtifactError, RequestError) as err:
            wrong.append(str(err))
    print("\n".join(wrong), file=sys.stderr, end="\n" if wrong else "")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
