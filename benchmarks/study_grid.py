"""A grid of 3 defenses, 2 models and 3 seeds from an experiment file: serial and Ray, a worker killed in each.

Checks that both give the same rows, and that no artifact is built twice: each training begins once, except for the one
that was killed, and a second call changes no file of the store.

    python benchmarks/study_grid.py FOLDER
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil  # type: ignore[import-untyped]

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
    """Kill the process that trains, after KILL_AFTER models, with SIGKILL; return its command."""
    while len(models(store)) < KILL_AFTER and run.poll() is None:
        time.sleep(0.2)
    while run.poll() is None:
        workers = [p for p in psutil.Process(run.pid).children(recursive=True) if "run_remote_task" in name(p)]
        victim = workers[0] if workers else psutil.Process(run.pid) if store.name == "serial" else None
        if victim is not None:
            words = name(victim)
            os.kill(victim.pid, signal.SIGKILL)
            return words
        time.sleep(0.1)
    raise SystemExit("the run ended before a process could be killed")


def name(process: psutil.Process) -> str:
    """Return the command of a process; a Ray worker shows its task there."""
    try:
        words = " ".join(process.cmdline())
        task = words.startswith("ray::") and not any(part in words for part in ("IDLE", "Agent"))
        return "run_remote_task " + words if task else words
    except psutil.Error:
        return ""


def files(store: Path) -> dict[str, tuple[int, int]]:
    """Return inode and time of change of every artifact file, except rows.csv and locks."""
    found = [p for p in store.rglob("*") if p.is_file() and "locks" not in p.parts and p.parent != store]
    return {str(p): (p.stat().st_ino, p.stat().st_mtime_ns) for p in found if "logs" not in p.parts}


def main() -> None:
    """Run both executors and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.toml").write_text(STUDY)
    rows = {}
    for executor in ("serial", "ray"):
        store = folder / executor
        begun = time.monotonic()
        run = start(folder, executor)
        print(f"{executor}: killed: {kill_one(run, store)[:80]}", flush=True)
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
        rows[executor] = pd.read_csv(store / "rows.csv").drop(columns=TIMES)
    pd.testing.assert_frame_equal(rows["serial"], rows["ray"])
    print(f"the same {len(rows['ray'])} rows", flush=True)


if __name__ == "__main__":
    main()
