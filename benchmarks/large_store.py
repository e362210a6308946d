"""Seconds of leaderboard, report and planning over a store of many records.

`make` writes a synthetic store: copies of the records and models of a board, without weights, under other data sets and
seeds, with random outcomes. `time` measures commands on it, each in a process of its own.

    python benchmarks/large_store.py make STORE --records 100000
    python benchmarks/large_store.py time STORE
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from robobench.store.artifacts import MANIFEST, Store, hash_recipe

BOARD = Path(__file__).parent.parent / "leaderboards" / "cifar10-jpeg-resnet20"
DATASETS = 20


def write(folder: Path, recipe: Any, files: dict[str, Any]) -> None:
    """Write an artifact without flushing it to disk."""
    folder.mkdir(parents=True)
    digests = {}
    for name, value in files.items():
        text = value if isinstance(value, str) else json.dumps(value)
        (folder / name).write_text(text)
        digests[name] = hashlib.sha256(text.encode()).hexdigest()
    manifest = {"name": folder.name, "recipe": recipe, "files": digests}
    (folder / MANIFEST).write_text(json.dumps({**manifest, "digest": hash_recipe(manifest)}, indent=1))


def make(root: Path, count: int) -> None:
    """Write a synthetic store of `count` records."""
    board, rng, done = Store(BOARD), random.Random(0), 0
    cells = []
    for folder in board.iter_artifacts("evaluations"):
        cells.append((json.loads((folder / "record.json").read_text()), board.manifest(folder)["recipe"]))
    models = {}
    for folder in board.iter_artifacts("model"):
        files = {name: json.loads((folder / name).read_text()) for name in ("config.json", "timing.json")}
        models[folder.name] = (files, board.manifest(folder)["recipe"])
    for copy in range(-(-count // len(cells))):
        number, shift = copy % DATASETS, 10 * (copy // DATASETS)
        renamed = {name: f"{name}-{copy}" for name in models}
        keys = {
            files["config.json"]["key"]: hash_recipe({"k": files["config.json"]["key"], "copy": copy})
            for files, _ in models.values()
        }
        seeds = {}
        for name, (files, recipe) in models.items():
            config = {**files["config.json"], "dataset": f"data-{number}", "key": keys[files["config.json"]["key"]]}
            seeds[name] = config["seed"] = config["seed"] + shift
            timing = {**files["timing.json"]}
            timing["required"] = {renamed[other]: seconds for other, seconds in timing["required"].items()}
            write(root / renamed[name], {**recipe, "copy": copy}, {"config.json": config, "timing.json": timing})
        for record, recipe in cells:
            if done == count:
                return
            done += 1
            recipe = {**recipe, "copy": copy, "transfer_source": keys.get(recipe["transfer_source"])}
            key = hash_recipe(recipe)
            bits = record["robust_bits"]
            values = {
                "key": key, "training": renamed[record["training"]], "seed": seeds[record["training"]],
                "dataset": f"data-{number}", "data_digest": hash_recipe({"data": number}),
                "weights_digest": hash_recipe({"weights": record["weights_digest"], "copy": copy}),
                "robust_bits": bits and "".join("1" if b == "1" and rng.random() < 0.9 else "0" for b in bits),
            }  # fmt: skip
            if record["source_digest"]:
                values["source_digest"] = hash_recipe({"weights": record["source_digest"], "copy": copy})
            write(root / "artifacts" / "evaluations" / key, recipe, {"record.json": {**record, **values}})


PLAN = """
import sys
from pathlib import Path
from robobench.core.console import SilentReporter
from robobench.execution.runner import Runner
from robobench.planning.planner import prepare_all
from robobench.planning.study import read_study
import time
begun, cpu = time.monotonic(), time.process_time()
points = read_study(Path(sys.argv[1]), {"out": sys.argv[2]}).points
runners = [Runner(*pair, SilentReporter()) for pair in prepare_all([p.request for p in points])]
keys = {r.evaluator.key(cell) for r in runners for cell in r.plan.cells()}
stored = sum((Path(sys.argv[2]) / "artifacts" / "evaluations" / key).is_dir() for key in keys)
print(f"  {len(points)} requests, {len(keys)} cells, {stored} stored: {time.process_time() - cpu:.1f} s of CPU time, "
      f"{time.monotonic() - begun:.1f} s, after the imports")
"""
STUDY = """
defenses = ["standard", "at", "trades", "mart"]
model = ["cnn", "resnet20"]
seeds = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
epochs = [1, 2, 3, 4, 5, 6, 7, 8]
threads = 1
attacks = "fgsm,pgd"
eps = "0.05,0.1"
"""


def run(label: str, *words: str) -> None:
    """Run a command and print its seconds."""
    before, begun = os.times(), time.monotonic()
    done = subprocess.run([sys.executable, *words], stdout=subprocess.PIPE, text=True)
    after, seconds = os.times(), time.monotonic() - begun
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    print(f"{label}: {cpu:.1f} s of CPU time, {seconds:.1f} s, status {done.returncode}", flush=True)
    if words[0] == "-c":
        print(done.stdout, end="", flush=True)


def measure(store: Path, rebuild: bool) -> None:
    """Print the seconds of leaderboard, report and planning, with a fresh, a stale and no index."""
    with tempfile.TemporaryDirectory() as folder:
        page, study = Path(folder) / "report.html", Path(folder) / "study.toml"
        study.write_text(STUDY)
        leaderboard = ("-m", "robobench", "leaderboard", str(store))
        run("leaderboard", *leaderboard)
        run("report", "-m", "robobench", "report", str(store), "--html", str(page))
        run("planning", "-c", PLAN, str(study), str(store))
        record = next(Store(store).iter_artifacts("evaluations")) / "record.json"
        record.touch()
        run("leaderboard, a record touched", *leaderboard)
        if rebuild:
            shutil.rmtree(Store(store).folder("index", "rows"))
            run("leaderboard, index deleted", *leaderboard)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=("make", "time"))
    parser.add_argument("store", type=Path)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--rebuild", action="store_true", help="time: also without an index, which takes minutes")
    given = parser.parse_args()
    if given.action == "make":
        make(given.store, given.records)
    else:
        measure(given.store, given.rebuild)
