"""The rows that a fixed store gives, with the version of the index that holds such rows.

After an intended change, raise VERSION in robobench/results/index.py, so that stored indexes are not used any more, and
rewrite the file: UPDATE_GOLDEN=1 pytest tests/golden/test_index_rows.py
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from robobench.results import rows
from robobench.results.index import OWN_COLUMNS, VERSION
from robobench.store.artifacts import Store
from tests.helpers.records import evaluation_record

FILE = Path(__file__).parent / "index_rows.txt"
PASSES = {"forward": 1, "input_grad": 2, "weight_grad": 1, "teacher_forward": 0, "teacher_input_grad": 0}
STAGE = {"name": "train", "epochs": 3, "images": 300, "passes": PASSES, "cpu_seconds": 4.5, "peak_memory_bytes": 2**21}
TIMINGS = {
    "at-1": {"train_seconds": 2.0, "total_train_seconds": 3.0, "stages": [STAGE], "forward_flops": 1000},
    "kd-1": {"train_seconds": 1.0, "total_train_seconds": 3.0, "stages": [STAGE], "required": {"at-1": 2.0}},
    "ext-1": {"train_seconds": None, "total_train_seconds": None, "flags": ["foreign"]},
}
CLEAN, HALF, LOST = "1" * 190 + "0" * 10, "10" * 100, "0" * 200
FOUND = {"flag": "noisy-gradient", "raised": True, "evidence": "sign differs", "value": 0.5}
ATTACKS: list[dict[str, Any]] = [
    {"attack": "fgsm", "robust": HALF, "attack_budget": "1 step"},
    {"attack": "pgd", "robust": LOST},
    {"attack": "pgd", "robust": HALF, "protocol": "transfer", "source_digest": "5", "source_findings": [FOUND]},
    {"attack": "pgd", "robust": HALF, "eps": 0.2, "population": 1000, "budget_reduced": True},
    {"attack": "cw", "eps": 0.2, "status": "failed", "reason": "RuntimeError: no memory", "robust": None},
]


def write_store(root: Path) -> None:
    """Write three models, each under five attacks: lost white-box only, sampled, and failed."""
    store = Store(root)
    for name, timing in TIMINGS.items():
        with store.create("model", name, {"defense": name}) as to:
            (to / "timing.json").write_text(json.dumps({"required": {}, "stages": [], "flags": []} | timing))
        for number, values in enumerate(ATTACKS):
            record = evaluation_record(
                **{"clean": CLEAN, "source_digest": None, **values},
                key=f"{name}-{number}", training=name, weights_digest=name[::-1], selection="last", precision="fp32",
            )  # fmt: skip
            del record["timing"]
            with store.create("evaluations", record["key"], {"key": record["key"]}) as to:
                (to / "record.json").write_text(json.dumps(record))


def test_changed_rows_raise_the_version(tmp_path):
    write_store(tmp_path)
    table = rows._all_rows(tmp_path, [*rows.COLUMNS, *OWN_COLUMNS])
    lines = [f"{name}: {table[name].tolist()}" for name in table]
    made, (version, *was) = lines, FILE.read_text().splitlines()
    assert made == was or version != f"version {VERSION}", "the rows of the index have changed: raise its VERSION"
    text = "\n".join([f"version {VERSION}", *lines]) + "\n"
    if os.environ.get("UPDATE_GOLDEN"):
        FILE.write_text(text)
    assert text == FILE.read_text()
