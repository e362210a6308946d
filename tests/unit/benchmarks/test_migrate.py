"""Migration of a store from the record format of 2026-11."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

from robobench.errors import ArtifactError
from robobench.results.records import EvaluationRecord
from robobench.results.rows import make_frame, read_records, read_rows
from robobench.store.artifacts import WEIGHT_FILES, Store

ROOT = Path(__file__).parents[3]
MODEL, KEY = "iad-cnn-digits-s0-0123456789", "0123456789abcdef"
CONFIG = {"epochs": 2, "eps_warmup": 0.25, "attack_bn": "train", "b": 0.1, "gate": None}
NEW_CONFIG = {"epochs": 2, "eps_rampup": 0.25, "attack_bn_mode": "train", "beta": 0.1, "introspection_start": None}
STAGE = {
    **{"name": "distill", "seconds": 3.0, "cpu_seconds": 4.0, "peak_memory_bytes": 2**20, "warmup_seconds": 0.5},
    **{"epochs": 2, "images": 20, "passes": {"forward": 2, "input_grad": 1, "weight_grad": 1}, "metrics": {}},
    "flags": ["batch-cut-2"],
}
STAGE["passes"] |= {"teacher_forward": 0, "teacher_input_grad": 0}
TIMING = {
    **{"stages": [STAGE], "own_seconds": 3.0, "whole_seconds": 3.0, "warmup_seconds": 0.5, "peak_memory_bytes": 2**20},
    **{"required": {}, "teachers": {}, "selection": None, "flags": ["batch-cut-2"], "hardware": "a CPU", "devices": 1},
    **{"commit": "abc", "finished": "2026-11-23T10:03:42Z"},
}
RECORD = {
    **{"training": MODEL, "dataset": "digits", "data_digest": "d1", "model": "cnn", "image_size": 32},
    **{"stem": "native", "interpolation": "bilinear", "preset": "quick", "config_digest": "c1", "defense": "iad"},
    **{"defense_version": 1, "train_norm": "Linf", "train_eps": 0.1, "attack": "pgd", "attack_version": 1},
    **{"threat_norm": "Linf", "threat_eps": 0.1, "relative_step": 0.25, "steps": 40, "gradient_free": False},
    **{"stop": "first", "budget": "steps=40", "protocol": "white-box", "source_digest": None, "weights_digest": "w1"},
    **{"seed": 0, "selection": "last", "examples": 4, "precision": "fp32", "compiled": False, "threads": 1},
    **{"hardware": "a CPU", "torch_version": "2", "commit": "abc", "control": False, "status": "ok", "reason": ""},
    **{"clean_bits": "1110", "robust_bits": "1000", "seconds": 1.5, "compiled_search": False},
    "curves": {"pgd": {"images": 3, "loss": [0.1, 0.2], "fallen": [0.0, 0.5]}},
    "findings": [],
}
RECIPE = {
    **{"model": KEY, "selection": "last", "source": None, "protocol": "white-box", "data": "d1", "examples": 4},
    "chunk": 256,
}
# attack, its config, budget, stop -> the values that replace the last two
CASES = {
    "pgd": ({"steps": 40}, "steps=40", "first", ("steps=40", False, False, "fp32", True)),
    "mifgsm": ({}, "reduced: steps=5, bfloat16 search", "first", ("reduced: steps=5", True, False, "bf16", True)),
    "autoattack": ({}, "standard", "first", ("standard", False, True, "fp32", True)),
    "pyautoattack": ({}, "standard", "library", ("standard", False, True, "fp32", True)),
    "transfer:adv.npz": ({}, "file 0123", "library", ("file 0123", False, False, "fp32", False)),
    "square": (
        {"queries": 9, "area": 0.8, "rescale": True},
        "reduced: queries=9, area=0.8, rescale=True",
        "never",
        ("reduced: queries=9, p_init=0.8, rescale_schedule=True", True, False, "fp32", False),
    ),
}
NEW_KEYS = ("attack_budget", "budget_reduced", "budget_standard", "search_precision", "early_stop")


@pytest.fixture
def migrate(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "boards"))
    yield importlib.import_module("migrate")
    sys.modules.pop("migrate", None)


@pytest.fixture
def store(tmp_path):
    """A store in the old format: one model with a stored stage, transfer examples, and one record per attack."""
    store = Store(tmp_path / "store")

    def create(kind, name, recipe, **files):
        with store.create(kind, name, recipe) as work:
            for file, value in files.items():
                (work / file.replace("_", ".")).write_text(value if isinstance(value, str) else json.dumps(value))

    training = {"defense": "iad", "config": CONFIG, "threads": 1}
    config = {"defense": "iad", "config": CONFIG, "key": KEY}
    create("model", MODEL, training, model_safetensors="weights", config_json=config, timing_json=TIMING)
    stage = {"record": STAGE, "metrics": []}
    create("stages", KEY, {"training": training, "stage": "mae"}, record_json=stage)
    attack = {"attack": "autoattack", "config": {}, "norm": "Linf", "eps": 0.1}
    create("transfer", KEY, {"source": KEY, "attack": attack, "stop": "never"}, examples_safetensors="images")
    for number, (name, (fields, budget, stop, _)) in enumerate(CASES.items()):
        key = f"{number:016x}"
        record = {"key": key, **RECORD, "attack": name, "budget": budget, "stop": stop}
        create(
            "evaluations", key, {**RECIPE, "attack": {**attack, "attack": name, "config": fields}}, record_json=record
        )
    return store


def read(store, kind, name, file):
    return json.loads((store.folder(kind, name) / file).read_text())


def test_records_get_new_keys(migrate, store):
    migrate.migrate(store.root)
    for number, (name, (*_, expected)) in enumerate(CASES.items()):
        record = read(store, "evaluations", f"{number:016x}", "record.json")
        assert tuple(record[key] for key in NEW_KEYS) == expected, name
        assert record["is_control"] is False
        assert record["traces"] == {"pgd": {"images": 3, "loss": [0.1, 0.2], "success_rate": [0.0, 0.5]}}
        later = {"timing", "resolution", "own_source", "source_findings", "black_box_found"}
        later |= {"bpda", "eot", "population", "sources", "verdict"}  # none of these is in migrated records
        assert set(record) | later == set(EvaluationRecord.__annotations__)
        unchanged = RECORD.keys() - {"stop", "budget", "control", "curves", "attack"}
        assert {key: record[key] for key in unchanged} == {key: RECORD[key] for key in unchanged}


def test_model_files_get_new_keys(migrate, store):
    migrate.migrate(store.root)
    assert read(store, "model", MODEL, "config.json") == {"defense": "iad", "config": NEW_CONFIG, "key": KEY}
    timing = read(store, "model", MODEL, "timing.json")
    assert (timing["train_seconds"], timing["total_train_seconds"]) == (3.0, 3.0)
    assert timing["flags"] == timing["stages"][0]["flags"] == ["grad-accumulation-2"]
    assert not {"own_seconds", "whole_seconds"} & timing.keys()
    assert read(store, "stages", KEY, "record.json")["record"]["flags"] == ["grad-accumulation-2"]


def test_recipes_are_renamed_and_digests_match(migrate, store):
    weights = store.digest("model", MODEL, WEIGHT_FILES["last"])
    migrate.migrate(store.root)
    for kind in ("model", "stages", "transfer", "evaluations"):
        for folder in store.iter_artifacts(kind):
            store.verify(folder)
    assert store.digest("model", MODEL, WEIGHT_FILES["last"]) == weights
    assert store.manifest(store.folder("model", MODEL))["recipe"]["config"] == NEW_CONFIG
    assert store.manifest(store.folder("stages", KEY))["recipe"]["training"]["config"] == NEW_CONFIG
    examples = store.manifest(store.folder("transfer", KEY))["recipe"]
    assert examples["transfer_source"] == KEY and examples["early_stop"] is False
    square = store.manifest(store.folder("evaluations", f"{5:016x}"))["recipe"]
    assert (square["eval_batch_size"], square["transfer_source"]) == (256, None)
    assert square["attack"]["config"] == {"queries": 9, "p_init": 0.8, "rescale_schedule": True}


def test_rows_keep_their_values(migrate, store):
    """The current code's rows of the migrated store have the values that follow from the old records by hand."""
    assert migrate.migrate(store.root) == []
    rows = read_rows(store.root).set_index("attack")
    assert len(rows) == len(CASES)
    assert rows.loc["pgd", ["clean_accuracy", "robust_accuracy"]].tolist() == [0.75, 0.25]
    assert rows.loc["pgd", ["train_seconds", "total_train_seconds", "train_cpu_seconds"]].tolist() == [3.0, 3.0, 4.0]
    assert rows.loc["pgd", "train_forwards"] == 20 * (2 + 1 + 2)
    assert rows.loc["pgd", "flags"] == "grad-accumulation-2"


def test_second_migration_changes_nothing(migrate, store):
    migrate.migrate(store.root)
    before = {path: path.read_bytes() for path in store.root.rglob("*") if path.is_file()}
    assert migrate.migrate(store.root) == []
    assert {path: path.read_bytes() for path in store.root.rglob("*") if path.is_file()} == before


def test_table_without_records_is_migrated(migrate, tmp_path, store):
    """A board may hold rows.csv only. Its migrated rows are those of the migrated records."""
    migrate.migrate(store.root)
    new = make_frame(read_records(store.root))
    names = {"train_seconds": "own_seconds", "total_train_seconds": "whole_seconds", "is_control": "control"}
    names |= {
        f"{a}_{what}": f"{b}_{what}"
        for what in ("forwards", "cpu_seconds")
        for a, b in (("train", "own"), ("total_train", "whole"))
    }
    old = new.rename(columns=names).drop(
        columns=["early_stop", "budget_reduced", "budget_standard", "search_precision"]
    )
    old["stop"], old["flags"] = [CASES[name][2] for name in old["attack"]], "batch-cut-2"
    old["budget"] = [CASES[name][1] for name in old.pop("attack")]
    old["attack"] = new["attack"]
    board = tmp_path / "board"
    board.mkdir()
    old.drop(columns="attack_budget").to_csv(board / "rows.csv", index=False)
    assert migrate.migrate(board) == []
    assert (board / "rows.csv").read_text() == new.to_csv(index=False)


def test_changed_value_is_reported(migrate):
    old = {"defense": "at", "robust_accuracy": "0.5", "attack": "pgd"}
    assert migrate.compare_rows([old], [{**old, "robust_accuracy": "0.6"}]) == [
        "column 'robust_accuracy': 1 rows differ"
    ]
    assert migrate.compare_rows([old, old], [old]) == ["2 rows before, 1 now"]


def test_damaged_artifact_is_refused(migrate, store):
    (store.folder("model", MODEL) / "timing.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"timing\.json"):
        migrate.migrate(store.root)
