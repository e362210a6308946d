"""Runs robobench's command line in forked children, so that a run costs no imports and can be killed or starved.

Use as `python tests/faults/kill.py`; everything is made in a temporary folder.
"""

from __future__ import annotations

import functools
import io
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd

TIMES = [
    *("train_seconds", "total_train_seconds", "warmup_seconds", "train_cpu_seconds", "total_train_cpu_seconds"),
    *("peak_memory_bytes", "stage_memory"),
]
DEFENSES = ("standard", "at", "trades", "iad", "mtard", "adaad", "rocl", "macd")
TINY = (
    *("--threads", "1", "--device", "cpu", "--seed", "0", "--checkpoint-minutes", "0"),
    *("--epochs", "2", "--batch-size", "16", "--set", "run.train_images=64", "--set", "run.eval_batch_size=8"),
    *("--examples", "16", "--protocol", "white-box", "--attacks", "fgsm", "--eps", "0.1"),
)
MORE = {
    **{name: ("--set", f"{name}.inner_steps=2") for name in ("at", "trades", "iad", "mtard", "adaad")},
    "rocl": ("--set", "rocl.head_epochs=2", "--set", "rocl.head_batch_size=16"),
    "macd": (
        *("--set", "macd.mae_epochs=2", "--set", "macd.feature_epochs=2", "--set", "macd.static_steps=4"),
        *("--set", "macd.encoder_depth=2", "--set", "macd.decoder_depth=1"),
    ),
}


def command(defense: str) -> list[str]:
    """Return the smallest run of a defense."""
    return ["run", "--defense", defense, *TINY, *MORE.get(defense, ())]


def preload() -> None:
    """Import and read everything a run needs, so that a child begins at once. No tensor is touched before the fork."""
    import safetensors.torch
    import torch._dynamo  # the optimizers import it on first use

    import robobench.cli
    import robobench.comparison
    import robobench.data
    import robobench.interface
    import robobench.plugins
    import robobench.report.export

    for kind in ("defense", "attack"):
        for name in robobench.plugins.discover(kind):
            robobench.plugins.load_plugin(kind, name)
    robobench.data._scans = functools.cache(robobench.data._scans)
    robobench.data._scans()
    assert safetensors.torch and torch._dynamo and robobench.comparison and robobench.report.export


def start(arguments: list[str], out: Path, log: Path, before: Callable[[], None] = lambda: None) -> int:
    """Run a command line on a store in a forked child; return its process number."""
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout, sys.stderr = (io.TextIOWrapper(os.fdopen(n, "wb", 0), write_through=True) for n in (1, 2))
        import torch

        torch.set_num_threads(1)
        from robobench.cli import main

        before()
        status = main([*arguments, "--out", str(out)])
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


def finish(pid: int) -> int:
    """Wait for a child; return its exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run(arguments: list[str], out: Path, log: Path, before: Callable[[], None] = lambda: None) -> int:
    """Run a command line to its end."""
    return finish(start(arguments, out, log, before))


def kill_after(pid: int, seconds: float) -> bool:
    """Kill a child after a while; False if it was done before."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return False
        time.sleep(min(0.005, max(0.0, end - time.monotonic())))
    os.kill(pid, signal.SIGKILL)
    return True


def contents(store: Path) -> dict[str, object]:
    """Return everything a store says that may not depend on time: weights, configs, metrics, records, rows."""
    if not (store / "rows.csv").is_file():
        return {}
    found: dict[str, object] = {}
    for folder in sorted(p for p in store.iterdir() if (p / "artifact.json").is_file() and ".damaged-" not in p.name):
        for name in ("model.safetensors", "config.json", "metrics.csv"):
            found[f"{folder.name}/{name}"] = (folder / name).read_bytes()
    for folder in sorted((store / "artifacts" / "evaluations").iterdir()):
        if ".damaged-" not in folder.name and not folder.name.startswith("."):
            record = json.loads((folder / "record.json").read_text())
            found[folder.name] = {**record, "seconds": None, "commit": None}
    rows = pd.read_csv(store / "rows.csv").drop(columns=[*TIMES, "commit"])  # the tree may change while this runs
    found["rows"] = rows.to_csv()
    return found


def differences(store: Path, reference: dict[str, object]) -> list[str]:
    """Name what a store has otherwise than the reference, and what a killed process left in it."""
    own = contents(store)
    wrong = [name for name in sorted(own.keys() | reference.keys()) if own.get(name) != reference.get(name)]
    left = [str(p) for p in store.rglob(".*") if p.name != ".rows.lock"]
    return wrong + left + [str(p) for p in (store / "artifacts").glob("checkpoints/*/*")]


def copy(store: Path, where: Path) -> Path:
    """Copy a store, in the place of what stands there."""
    shutil.rmtree(where, ignore_errors=True)
    return Path(shutil.copytree(store, where))
