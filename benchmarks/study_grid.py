"""A grid of 3 defenses, 2 models and 3 seeds from an experiment file: serial, Ray and Slurm, a worker killed in each.

Checks that all give the same rows, and that no artifact is built twice: each training begins once, except for the one
that was killed, and a second call changes no file of the store. A store with rows is not run again.

    python benchmarks/study_grid.py FOLDER [--executors serial,ray]
    benchmarks/slurm_node.sh NODE python benchmarks/study_grid.py FOLDER --executors serial,slurm
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd

STUDY = """
defenses = ["standard", "fast-at", "trades"]
model = ["cnn", "resnet20"]
seeds = [0, 1, 2]
epochs = 1
examples = 24
threads = 1
attacks = "fgsm"
eps = "0.1"
checkpoint_minutes = 0

[set]
run.train_images = 64
run.eval_batch_size = 16
"""
TIMES = [
    *("train_seconds", "total_train_seconds", "train_cpu_seconds", "total_train_cpu_seconds", "warmup_seconds"),
    *("peak_memory_bytes", "stage_memory", "commit"),  # a tree with changes has another commit
]
KILL_AFTER = 4  # trained models


def start(folder: Path, executor: str) -> subprocess.Popen[bytes]:
    """Start the grid with an executor."""
    command = [sys.executable, "-m", "robobench", "compare", "study.toml", "--executor", executor, "--out", executor]
    log = (folder / f"{executor}.log").open("ab")
    return subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)


def models(store: Path) -> list[Path]:
    """Return the folders of trained models."""
    return sorted(path.parent for path in store.glob("*-s[0-9]-*/model.safetensors"))


def kill_one(run: subprocess.Popen[bytes], store: Path) -> str:
    """Kill the process that trains, after KILL_AFTER models, with SIGKILL; return what it trained."""
    while run.poll() is None:
        owners = list(store.glob("artifacts/locks/model-*.owner")) if len(models(store)) >= KILL_AFTER else []
        with contextlib.suppress(OSError, IndexError):  # gone, or not written yet
            for owner in owners:
                os.kill(int(owner.read_text().split()[1]), signal.SIGKILL)
                return owner.stem
        time.sleep(0.1)
    raise SystemExit("the run ended before a process could be killed")


def files(store: Path) -> dict[str, tuple[int, int]]:
    """Return inode and time of change of every artifact file, except rows.csv and locks."""
    found = [p for p in store.rglob("*") if p.is_file() and "locks" not in p.parts and p.parent != store]
    return {str(p): (p.stat().st_ino, p.stat().st_mtime_ns) for p in found if "logs" not in p.parts}


def main() -> None:
    """Run the executors and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--executors", default="serial,ray")
    given = parser.parse_args()
    folder, executors = given.folder, given.executors.split(",")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.toml").write_text(STUDY)
    for executor in executors:
        store = folder / executor
        if (store / "rows.csv").exists():
            continue
        begun = time.monotonic()
        run = start(folder, executor)
        print(f"{executor}: killed while it trained {kill_one(run, store)}", flush=True)
        status = run.wait()
        if executor == "serial":
            print(f"serial: status {status}, {len(models(store))} models; the same command again", flush=True)
            status = start(folder, executor).wait()
        seconds = time.monotonic() - begun
        starts = {m.name: len(re.findall(r" as '", (m / "run.log").read_text())) for m in models(store)}
        before = files(store)
        again = start(folder, executor).wait()
        same = files(store) == before
        twice = {model: count for model, count in starts.items() if count > 1}
        print(
            f"{executor}: status {status}, {seconds:.0f} s, {len(starts)} models, begun more than once: {twice}; "
            f"a second call: status {again}, artifacts unchanged: {same}",
            flush=True,
        )
    rows = {name: pd.read_csv(folder / name / "rows.csv").drop(columns=TIMES) for name in executors}
    for name in executors[1:]:
        pd.testing.assert_frame_equal(rows[executors[0]], rows[name])
        print(f"{executors[0]} and {name}: the same {len(rows[name])} rows", flush=True)


if __name__ == "__main__":
    main()
